// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The map on a terminal: one cell per block, 128 MiB per line.

use std::fmt::Write;

use super::kind::BlockKind;
use super::runs::{BlockRun, BlockRuns};

/// Blocks in a line.
const PER_LINE: u64 = 64;

/// Draws the map with a legend; with colours, or with letters if the terminal has none.
pub fn to_terminal(map: &BlockRuns, colours: bool) -> String {
    let mut out = String::new();
    let mut next = None;
    for (id, block) in map.iter() {
        if next != Some(id) || id % PER_LINE == 0 {
            let _ = write!(out, "{}{:>#13x} ", newline(next), id * map.block_bytes);
        }
        out.push_str(&cell(block, colours));
        next = Some(id + 1);
    }
    out.push_str("\n\n");
    for kind in BlockKind::ALL {
        let count = map.iter().filter(|(_, b)| BlockKind::of(b) == kind).count();
        if count > 0 {
            let sample = paint(kind, letter(kind), colours);
            let _ = writeln!(out, "  {sample} {:<20} {count:>7} blocks", kind.name());
        }
    }
    for (name, mark, count) in [
        ("CMA region", '_', map.iter().filter(|(_, b)| b.cma).count()),
        ("GPU buffers", 'g', map.iter().filter(|(_, b)| b.gpu > 0).count()),
    ] {
        if count > 0 {
            let _ = writeln!(out, "  {mark} {name:<20} {count:>7} blocks");
        }
    }
    out
}

fn newline(next: Option<u64>) -> &'static str {
    if next.is_some() { "\n" } else { "" }
}

fn cell(block: &BlockRun, colours: bool) -> String {
    let kind = BlockKind::of(block);
    let mark = match (block.gpu > 0, block.cma, colours) {
        (true, ..) => 'g',
        (_, true, true) => '_',
        (_, _, true) => ' ',
        (_, _, false) => letter(kind),
    };
    paint(kind, mark, colours)
}

fn paint(kind: BlockKind, mark: char, colours: bool) -> String {
    let [r, g, b] = kind.colour();
    if colours { format!("\x1b[48;2;{r};{g};{b}m{mark}\x1b[0m") } else { mark.to_string() }
}

const fn letter(kind: BlockKind) -> char {
    match kind {
        BlockKind::Huge => 'H',
        BlockKind::Dense => '#',
        BlockKind::Sparse => ':',
        BlockKind::Holed => 'o',
        BlockKind::Ballooned => 'B',
        BlockKind::Wasted => '!',
        BlockKind::Reported => 'r',
        BlockKind::Absent => '.',
    }
}

#[cfg(test)]
mod tests {
    use mm::units::BLOCK_SIZE;

    use super::*;

    fn map() -> BlockRuns {
        let run =
            |first, blocks, present| BlockRun { first, blocks, present, ..BlockRun::default() };
        let ballooned = BlockRun { ballooned: 512, cma: true, ..run(2048, 2, 0) };
        BlockRuns { block_bytes: BLOCK_SIZE, runs: vec![run(0, 65, 512), ballooned] }
    }

    #[test]
    fn lines_begin_with_addresses_and_the_hole_breaks_them() {
        let text = to_terminal(&map(), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("          0x0 {}", "#".repeat(64)));
        assert_eq!(lines[1], "    0x8000000 #");
        assert_eq!(lines[2], "  0x100000000 BB");
        assert!(lines.iter().any(|l| l.contains("ballooned") && l.ends_with("2 blocks")));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn colours_are_ended() {
        let text = to_terminal(&map(), true);
        assert_eq!(text.matches("\x1b[48").count(), text.matches("\x1b[0m").count());
    }
}
