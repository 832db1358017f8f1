// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `bench density` measured, and the figures and the picture made of it. Kept in a file, as each
//! row is measured in a machine of its own.

use std::fs;
use std::path::{Path, PathBuf};

use harness::figures::{Figure, Goal};
use harness::monitor::Kind;
use harness::{Error, Result};
use serde_json::{Value, json};

use crate::density_plot::{self, Curve, Point};
use crate::io_samples::read_each;

/// How much slower than alone is too slow, in two windows in a row.
pub(crate) const SLOWER: f64 = 2.0;

/// How guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    Plain,
    Reporting,
    Zram,
    Dense,
}

impl Setup {
    const ALL: [Self; 4] = [Self::Plain, Self::Reporting, Self::Zram, Self::Dense];

    /// How guests of that monitor run.
    pub(crate) fn of(kind: Kind) -> &'static [Self] {
        match kind {
            Kind::Ballast => &[Self::Dense],
            Kind::Firecracker => &[Self::Plain, Self::Reporting, Self::Zram],
            Kind::Qemu | Kind::CloudHypervisor => &[],
        }
    }

    /// What its row is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "firecracker",
            Self::Reporting => "firecracker-reporting",
            Self::Zram => "firecracker-zram",
            Self::Dense => "ballast-dense",
        }
    }

    /// What a person sees in the picture.
    fn label(self) -> &'static str {
        match self {
            Self::Plain => "Firecracker, no balloon",
            Self::Reporting => "Firecracker, free page reporting",
            Self::Zram => "Firecracker, host swap on zram",
            Self::Dense => "Ballast, policy dense",
        }
    }
}

/// A point of each row for each number of guests.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<(Setup, Vec<Point>)>);

impl Rows {
    /// What [`write`](Self::write) has left in these files.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut rows = Self::default();
        read_each(files, |text| rows.add(text))?;
        Ok(rows)
    }

    fn add(&mut self, text: &str) -> Option<()> {
        let values: Value = serde_json::from_str(text).ok()?;
        for row in values.as_array()? {
            let setup = Setup::ALL.into_iter().find(|setup| row["row"] == setup.name())?;
            let points = row["points"].as_array()?.iter().map(|point| {
                Some(Point {
                    guests: usize::try_from(point["guests"].as_u64()?).ok()?,
                    p99_ms: point["p99_ms"].as_f64()?,
                    free_mib: point["free_mib"].as_f64()?,
                })
            });
            self.keep(setup, points.collect::<Option<_>>()?);
        }
        Some(())
    }

    /// Adds a row; one of that name before is replaced.
    pub(crate) fn keep(&mut self, setup: Setup, points: Vec<Point>) {
        self.0.retain(|(known, _)| *known != setup);
        self.0.push((setup, points));
    }

    /// Writes all rows, and a picture of them, to the folder `logs`.
    pub(crate) fn write(&self, logs: &Path) -> Result<()> {
        let drawn: Vec<Curve> = self
            .0
            .iter()
            .map(|(setup, points)| Curve { label: setup.label(), points: points.clone() })
            .collect();
        let files =
            [("samples.json", self.json().to_string()), ("density.svg", density_plot::svg(&drawn))];
        for (name, text) in files {
            fs::write(logs.join(name), text).map_err(Error::io(format!("writing {name}")))?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let points = |of: &[Point]| {
            let mut values = Vec::new();
            for Point { guests, p99_ms, free_mib } in of {
                values.push(json!({ "guests": guests, "p99_ms": p99_ms, "free_mib": free_mib }));
            }
            values
        };
        self.0.iter().map(|(row, of)| json!({ "row": row.name(), "points": points(of) })).collect()
    }
}

/// How many guests were answered in time: up to the first point that was too slow.
pub(crate) fn fit(points: &[Point]) -> usize {
    let limit = points.first().map_or(0.0, |point| point.p99_ms * SLOWER);
    points.iter().take_while(|point| point.p99_ms <= limit).count()
}

/// The figures, with Ballast's goals where Firecracker was measured.
pub(crate) fn figures(rows: &Rows) -> Vec<Figure> {
    let Rows(curves) = rows;
    let count = |wanted: Setup| {
        let (_, points) = curves.iter().find(|(setup, _)| *setup == wanted)?;
        Some(fit(points) as f64)
    };
    let (plain, reporting) = (count(Setup::Plain), count(Setup::Reporting));
    let mut figures = Vec::new();
    for (setup, points) in curves {
        let name = |what: &str| format!("density.{}{what}", setup.name());
        let mut add = |what, value, unit, goal| {
            figures.push(Figure { name: name(what), value, unit, goal });
        };
        let guests = fit(points) as f64;
        add("", guests, "guests", Goal::None);
        if *setup == Setup::Dense {
            let goal = |peer: Option<f64>, times: f64| {
                peer.map_or(Goal::None, |peer| Goal::AtLeast(peer * times))
            };
            add(".beside-firecracker", guests, "guests", goal(plain, 2.5));
            add(".beside-reporting", guests, "guests", goal(reporting, 1.8));
        }
        add(".answering", points.len() as f64, "guests", Goal::None);
        if let (Some(alone), Some(last)) = (points.first(), points[..fit(points)].last()) {
            add(".p99-alone", alone.p99_ms, "ms", Goal::None);
            add(".p99-crowded", last.p99_ms, "ms", Goal::None);
            add(".free-crowded", last.free_mib, "MiB", Goal::None);
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_rows_and_a_new_row_replaces_an_old_one() {
        let point = |guests| Point { guests, p99_ms: 1.5, free_mib: 600.0 };
        let mut rows = Rows::default();
        rows.keep(Setup::Dense, vec![point(1)]);
        rows.keep(Setup::Plain, vec![point(1)]);
        rows.keep(Setup::Dense, vec![point(1), point(2)]);
        let mut read = Rows::default();
        read.add(&rows.json().to_string()).unwrap();
        let counts = |rows: &Rows| rows.0.iter().map(|(_, of)| of.len()).collect::<Vec<_>>();
        assert_eq!((counts(&read), read.json()), (vec![1, 2], rows.json()));
        assert!(read.add("[{}]").is_none());
    }

    #[test]
    fn guests_fit_until_one_point_is_too_slow() {
        let point = |(guests, p99_ms)| Point { guests, p99_ms, free_mib: 0.0 };
        let points: Vec<Point> = [(1, 10.0), (2, 19.0), (3, 21.0), (4, 12.0)].map(point).to_vec();
        assert_eq!(fit(&points), 2);
        assert_eq!(fit(&[]), 0);
    }
}
