// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The picture of `density.rs`: guests against response times and free memory, as SVG.

use std::fmt::Write as _;

/// What was measured with so many guests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) guests: usize,
    pub(crate) p99_ms: f64,
    pub(crate) free_mib: f64,
}

/// A line of the picture.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) label: &'static str,
    pub(crate) points: Vec<Point>,
}

const COLOURS: [&str; 4] = ["#d62728", "#1f77b4", "#ff7f0e", "#2ca02c"];
/// Width and height of a panel, inside its axes.
const PANEL: [f64; 2] = [340.0, 240.0];
/// The upper left corners of both.
const CORNERS: [[f64; 2]; 2] = [[60.0, 40.0], [480.0, 40.0]];
const SIZE: [f64; 2] = [840.0, 410.0];
/// Lines of the grid, at most.
const STEPS: f64 = 6.0;

/// The picture.
pub(crate) fn svg(curves: &[Curve]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE[0], SIZE[1]
    );
    panel(&mut out, CORNERS[0], "p99 of response times, ms", |point| point.p99_ms, curves);
    panel(&mut out, CORNERS[1], "free memory of the host, MiB", |point| point.free_mib, curves);
    for (at, (curve, colour)) in curves.iter().zip(COLOURS).enumerate() {
        let (x, y) = (60 + at / 2 * 420, 350 + at % 2 * 24);
        let guests = curve.points.len();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<path d=\"M{x} {y}h24\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\">{}: {guests} guests</text>",
            x + 32,
            y + 4,
            curve.label
        );
    }
    out + "</svg>\n"
}

fn panel(
    out: &mut String,
    [left, top]: [f64; 2],
    title: &str,
    value: fn(&Point) -> f64,
    curves: &[Curve],
) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = |of: &dyn Fn(&Point) -> f64| points().map(of).fold(1.0, f64::max);
    let step = [most(&|point| point.guests as f64), most(&value)].map(round_step);
    let end = [0, 1].map(|axis| {
        let highest = if axis == 0 { most(&|point| point.guests as f64) } else { most(&value) };
        (highest / step[axis]).ceil() * step[axis]
    });
    let x = |guests: f64| left + guests / end[0] * PANEL[0];
    let y = |value: f64| top + PANEL[1] - value / end[1] * PANEL[1];
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
        top - 14.0
    );
    for (axis, highest) in end.into_iter().enumerate() {
        let lines = std::iter::successors(Some(0.0), |at| Some(at + step[axis]));
        for at in lines.take_while(|at| *at <= highest) {
            let (line, label) = match axis {
                0 => (format!("M{:.1} {top}v{}", x(at), PANEL[1]), [x(at), top + PANEL[1] + 18.0]),
                _ => (format!("M{left} {:.1}h{}", y(at), PANEL[0]), [left - 8.0, y(at) + 4.0]),
            };
            let anchor = if axis == 0 { "middle" } else { "end" };
            let _ = writeln!(
                out,
                "<path d=\"{line}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"{anchor}\">{at}</text>",
                label[0], label[1]
            );
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">guests</text>",
        left + PANEL[0],
        top + PANEL[1] + 36.0
    );
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let places = curve.points.iter().map(|point| [x(point.guests as f64), y(value(point))]);
        let line: Vec<String> = places.map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
    }
}

/// A round distance of grid lines for values up to `highest`.
fn round_step(highest: f64) -> f64 {
    let power = 10f64.powf((highest / STEPS).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    let fits = steps.into_iter().find(|step| highest / step <= STEPS).unwrap_or(steps[3]);
    fits.max(1.0)
}
