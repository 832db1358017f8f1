// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest makes whole blocks: of its free memory, which it lends, and in exchange for single
//! pages of the balloon.
//!
//! Single pages are exchanged all at once: the guest takes them back first. So none of them is in
//! the way when it moves pages, which would take two requests each. The blocks that these pages
//! will move to are made huge, some of them before and the others meanwhile, as each page would
//! otherwise be a fault of an absent page on the host. They would be made huge at the end of the
//! pass anyway.

use std::time::Instant;

use tracing::debug;

use super::host_side::{COLLAPSES_AT_ONCE, HostStage};
use super::{CarryOut, PassProgress};
use crate::blocks::map::{Block, BlockFlags, BlockMap};
use crate::blocks::plan::{GatherOrder, PlanAction, PlanStep};
use crate::guest_ram::GuestRamError;
use crate::units::{BLOCK_SIZE, BlockId, Bytes, PAGES_PER_BLOCK, Pages};

/// So many destinations are made huge before the guest is asked, which waits meanwhile; the others while
/// it moves pages.
const HEAD_START: usize = 8;

/// Gathers free memory.
#[derive(Debug, Default)]
pub(in crate::blocks) struct GatherStage;

impl CarryOut for GatherStage {
    fn take(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<usize, GuestRamError> {
        if let PlanAction::Gather(GatherOrder { lend, exchange }) = steps[0].action {
            let (guest, cancel) = (progress.guest, progress.watch.cancel);
            // Single pages leave the balloon even where no block follows.
            progress.map_read = None;
            let begin = Instant::now();
            let back = match Pages(u64::from(exchange) * PAGES_PER_BLOCK) {
                Pages(0) => Pages(0),
                pages => guest.take_back(pages, progress.time_left(), cancel),
            };
            let returned = begin.elapsed();
            let blocks = lend + exchange.min((back.0 / PAGES_PER_BLOCK) as u32);
            let mut rest = match back {
                Pages(0) => Vec::new(),
                _ => destinations_now(progress)?,
            };
            let at_first: Vec<BlockId> = rest.drain(..rest.len().min(HEAD_START)).collect();
            make_huge(&at_first, progress)?;
            let prepared = begin.elapsed();
            let (patience, mut made) = (progress.time_left(), Ok(()));
            let came =
                guest.gather(lend, patience, cancel, &mut || made = make_huge(&rest, progress));
            let came = came.min(blocks);
            made?;
            let gathered = begin.elapsed();
            debug!(?back, ?returned, ?prepared, ?gathered, blocks, came, "gathered");
            let tally = &mut progress.tallies.gather;
            tally.done += came as usize;
            tally.busy += (blocks - came) as usize;
            tally.bytes = tally.bytes.saturating_add(Bytes(u64::from(came) * BLOCK_SIZE));
        }
        Ok(1)
    }
}

/// The blocks to make huge for the guest's used pages, in the order in which it will fill them.
fn destinations_now(progress: &PassProgress<'_>) -> Result<Vec<BlockId>, GuestRamError> {
    let totals = progress.map.totals();
    let free = progress.map.guest_free().unwrap_or_default();
    let in_use = totals.ram.saturating_sub(totals.ballooned).saturating_sub(free);
    let now = BlockMap::read(progress.ram, &progress.guest.holdings())?;
    Ok(destinations(&now, in_use))
}

fn make_huge(blocks: &[BlockId], progress: &mut PassProgress<'_>) -> Result<(), GuestRamError> {
    let mut host = HostStage::default();
    for some in blocks.chunks(COLLAPSES_AT_ONCE) {
        if progress.must_end() {
            break;
        }
        host.collapse(some.to_vec(), progress)?;
    }
    Ok(())
}

/// The blocks that are not huge in the highest `wanted` bytes of memory: compaction looks for free
/// pages from the top. Huge blocks below do not help, as the guest empties them.
fn destinations(map: &BlockMap, wanted: Bytes) -> Vec<BlockId> {
    let mut room = 0;
    let filled = |(_, block): &(BlockId, &Block)| {
        let before = room;
        if !block.flags.contains(BlockFlags::CMA) {
            room += PAGES_PER_BLOCK.saturating_sub(u64::from(block.ballooned));
        }
        Pages(before).bytes() < wanted
    };
    let out = BlockFlags::HUGE | BlockFlags::UNSURE | BlockFlags::LEFT_OUT | BlockFlags::CMA;
    let mendable = |b: &Block| b.used() > Pages(0) && !b.has_holes() && !b.flags.intersects(out);
    let all: Vec<(BlockId, &Block)> = map.iter().collect();
    let highest = all.into_iter().rev().take_while(filled);
    highest.filter(|(_, block)| mendable(block)).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(present: u16, ballooned: u16, flags: BlockFlags) -> Block {
        Block { present, ballooned, flags, ..Block::default() }
    }

    #[test]
    fn destinations_are_the_highest_blocks() {
        let (small, huge) = (BlockFlags::empty(), BlockFlags::HUGE);
        let blocks = vec![
            block(512, 0, huge),
            block(512, 0, huge),
            block(300, 0, small),
            block(300, 0, small),
            block(200, 256, small),
            block(512, 0, huge),
            block(300, 0, small),
        ];
        let map = BlockMap::of(BlockId(0), blocks, Vec::new());
        let of = |pages| destinations(&map, Pages(pages).bytes());
        assert_eq!(of(0), []);
        assert_eq!(of(2 * 512), [BlockId(6)], "block 5 is huge");
        assert_eq!(of(2 * 512 + 256), [BlockId(6)], "block 4 has room for a half, and holes");
        assert_eq!(of(2 * 512 + 257), [BlockId(6), BlockId(3)]);
        assert_eq!(of(100 * 512), [BlockId(6), BlockId(3), BlockId(2)]);
    }

    #[test]
    fn regions_for_contiguous_memory_are_no_destination() {
        let blocks = vec![block(300, 0, BlockFlags::empty()), block(300, 0, BlockFlags::CMA)];
        let map = BlockMap::of(BlockId(0), blocks, Vec::new());
        assert_eq!(destinations(&map, Bytes(BLOCK_SIZE)), [BlockId(0)]);
    }
}
