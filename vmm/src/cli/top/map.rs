// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocks on a part of the terminal: a cell represents one block, or as many consecutive blocks
//! as needed for all to fit.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::widgets::Widget;

use crate::block_view::{BlockKind, BlockRun, BlockRuns};

/// The map.
pub(super) struct Map<'a>(pub(super) &'a BlockRuns);

impl Map<'_> {
    /// Blocks per cell with `cells` cells.
    pub(super) fn scale(&self, cells: usize) -> usize {
        self.0.iter().count().div_ceil(cells.max(1)).max(1)
    }
}

/// The colour of a kind.
pub(super) fn colour(kind: BlockKind) -> Color {
    let [red, green, blue] = kind.colour();
    Color::Rgb(red, green, blue)
}

/// The kind that most of `blocks` are; of several, the first in the legend.
fn most_of(blocks: &[&BlockRun]) -> Option<BlockKind> {
    let count = |kind| blocks.iter().filter(|block| BlockKind::of(block) == kind).count();
    BlockKind::ALL.into_iter().rev().max_by_key(|kind| count(*kind))
}

/// Mark of a cell besides its colour.
fn mark(blocks: &[&BlockRun]) -> char {
    match blocks {
        b if b.iter().any(|block| block.gpu > 0) => 'g',
        b if b.iter().any(|block| block.cma) => '_',
        _ => ' ',
    }
}

impl Widget for Map<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let scale = self.scale(usize::from(area.width) * usize::from(area.height));
        let blocks: Vec<&BlockRun> = self.0.iter().map(|(_, block)| block).collect();
        for (position, cell) in area.positions().zip(blocks.chunks(scale)) {
            let Some(kind) = most_of(cell) else { continue };
            let style = Style::new().bg(colour(kind)).fg(Color::Black);
            if let Some(place) = buffer.cell_mut(position) {
                place.set_char(mark(cell)).set_style(style);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(counts: &[(u32, bool)]) -> BlockRuns {
        let mut first = 0;
        let runs = counts.iter().map(|&(blocks, huge)| {
            let run = BlockRun { first, blocks, present: 512, huge, ..BlockRun::default() };
            first += u64::from(blocks);
            run
        });
        BlockRuns { block_bytes: 2 << 20, runs: runs.collect() }
    }

    fn colours(runs: &BlockRuns, area: Rect) -> Vec<Color> {
        let mut buffer = Buffer::empty(area);
        Map(runs).render(area, &mut buffer);
        buffer.content().iter().map(|cell| cell.bg).collect()
    }

    #[test]
    fn one_cell_a_block_where_there_is_room() {
        let (huge, dense) = (colour(BlockKind::Huge), colour(BlockKind::Dense));
        let drawn = colours(&runs(&[(2, true), (1, false)]), Rect::new(0, 0, 2, 2));
        assert_eq!(drawn, [huge, huge, dense, Color::Reset]);
    }

    #[test]
    fn many_blocks_share_a_cell_and_most_of_them_decide() {
        let (huge, dense) = (colour(BlockKind::Huge), colour(BlockKind::Dense));
        let drawn = colours(&runs(&[(5, true), (4, false)]), Rect::new(0, 0, 3, 1));
        assert_eq!(drawn, [huge, huge, dense]);
        assert_eq!(colours(&runs(&[(5, true)]), Rect::new(0, 0, 0, 0)), []);
    }
}
