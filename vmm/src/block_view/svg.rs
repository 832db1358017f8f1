// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The map as an SVG picture with a legend.

use std::fmt::Write;

use super::kind::BlockKind;
use super::runs::BlockRuns;

/// Blocks per line: 128 MiB.
const PER_LINE: u64 = 64;
/// Pixels per block, with the gap to the next.
const CELL: u64 = 10;
const LEFT: u64 = 110;
const TOP: u64 = 40;
const LEGEND_ROW: u64 = 18;

/// Draws the map under `title`.
pub fn to_svg(map: &BlockRuns, title: &str) -> String {
    let mut body = String::new();
    let mut rows = 0;
    let mut row_start = None;
    for (id, block) in map.iter() {
        let line = id / PER_LINE;
        if row_start != Some(line) {
            row_start = Some(line);
            rows += 1;
            let y = TOP + rows * CELL - 2;
            let address = line * PER_LINE * map.block_bytes;
            let _ = writeln!(
                body,
                r##"<text x="{}" y="{y}" text-anchor="end">{address:#x}</text>"##,
                LEFT - 8
            );
        }
        let (x, y) = (LEFT + id % PER_LINE * CELL, TOP + (rows - 1) * CELL);
        let fill = colour(BlockKind::of(block));
        let size = CELL - 1;
        let _ = write!(
            body,
            r##"<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{fill}"/>"##
        );
        if block.gpu > 0 {
            let (cx, cy) = (x + CELL / 2, y + CELL / 2);
            let _ = write!(body, r##"<circle cx="{cx}" cy="{cy}" r="2" fill="#000"/>"##);
        }
        if block.cma {
            let _ = write!(
                body,
                r##"<rect x="{x}" y="{}" width="{size}" height="2" fill="#000"/>"##,
                y + CELL - 3
            );
        }
        body.push('\n');
    }
    let legend_top = TOP + rows * CELL + 24;
    let mut legend = String::new();
    let mut at = legend_top;
    for kind in BlockKind::ALL {
        let count = map.iter().filter(|(_, b)| BlockKind::of(b) == kind).count();
        let _ = writeln!(
            legend,
            r##"<rect x="{LEFT}" y="{}" width="12" height="12" fill="{}"/><text x="{}" y="{at}">{}: {count} blocks</text>"##,
            at - 10,
            colour(kind),
            LEFT + 20,
            kind.name()
        );
        at += LEGEND_ROW;
    }
    let _ = writeln!(
        legend,
        r##"<text x="{LEFT}" y="{at}">dot: GPU buffers; bar: CMA region; one cell is 2 MiB</text>"##
    );
    let (width, height) = (LEFT + PER_LINE * CELL + 20, at + 20);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n{body}{legend}</svg>\n",
        escape(title)
    )
}

fn colour(kind: BlockKind) -> String {
    let [r, g, b] = kind.colour();
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use mm::units::BLOCK_SIZE;

    use super::*;
    use crate::block_view::BlockRun;

    #[test]
    fn every_block_is_drawn_and_text_is_escaped() {
        let run =
            BlockRun { first: 0, blocks: 100, present: 512, huge: true, ..BlockRun::default() };
        let map = BlockRuns { block_bytes: BLOCK_SIZE, runs: vec![run] };
        let svg = to_svg(&map, "a <b> & c");
        let fill = format!("fill=\"{}\"", colour(BlockKind::Huge));
        assert_eq!(svg.matches(&fill).count(), 100 + 1);
        assert!(svg.contains("a &lt;b&gt; &amp; c"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
