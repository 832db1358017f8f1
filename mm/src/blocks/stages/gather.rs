// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest makes whole blocks: of its free memory, which it lends, and in exchange for single
//! pages of the balloon.
//!
//! Single pages are exchanged all at once: the guest takes them back first. So none of them is in
//! the way when it moves pages, which would take two requests each. Before that, the blocks that
//! these pages will move to are made huge, as each would otherwise be a fault of an absent page on
//! the host. They would be made huge at the end of the pass anyway.

use std::time::Instant;

use tracing::debug;

use super::host_side::{COLLAPSES_AT_ONCE, HostStage};
use super::{CarryOut, PassProgress};
use crate::blocks::map::{Block, BlockFlags, BlockMap};
use crate::blocks::plan::{GatherOrder, PlanAction, PlanStep};
use crate::guest_ram::GuestRamError;
use crate::units::{BLOCK_SIZE, BlockId, Bytes, PAGES_PER_BLOCK, Pages, usize_from};

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
            let begin = Instant::now();
            let back = match Pages(u64::from(exchange) * PAGES_PER_BLOCK) {
                Pages(0) => Pages(0),
                pages => guest.take_back(pages, progress.time_left(), cancel),
            };
            let returned = begin.elapsed();
            if back > Pages(0) {
                make_destinations_huge(progress)?;
            }
            let prepared = begin.elapsed();
            let blocks = lend + exchange.min((back.0 / PAGES_PER_BLOCK) as u32);
            let came = guest.gather(lend, progress.time_left(), cancel).min(blocks);
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

/// Makes huge what the guest will move pages to: as many blocks as its used pages need, from the top
/// of memory, where compaction looks for free pages.
fn make_destinations_huge(progress: &mut PassProgress<'_>) -> Result<(), GuestRamError> {
    let totals = progress.map.totals();
    let free = progress.map.guest_free().unwrap_or_default();
    let in_use = totals.ram.saturating_sub(totals.ballooned).saturating_sub(free);
    let now = BlockMap::read(progress.ram, &progress.guest.holdings())?;
    let huge = now.iter().filter(|(_, b)| b.flags.contains(BlockFlags::HUGE)).count();
    let missing = usize_from(in_use.0.div_ceil(BLOCK_SIZE)).saturating_sub(huge);
    let out = BlockFlags::HUGE | BlockFlags::UNSURE | BlockFlags::LEFT_OUT | BlockFlags::CMA;
    let mendable = |b: &Block| b.used() > Pages(0) && !b.has_holes() && !b.flags.intersects(out);
    let blocks: Vec<BlockId> = now.iter().filter(|(_, b)| mendable(b)).map(|(id, _)| id).collect();
    let mut host = HostStage::default();
    let blocks: Vec<BlockId> = blocks.into_iter().rev().take(missing).collect();
    for some in blocks.chunks(COLLAPSES_AT_ONCE) {
        if progress.must_end() {
            break;
        }
        host.collapse(some.to_vec(), progress)?;
    }
    Ok(())
}
