// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which blocks the guest evacuates: sparse ones, as many as there is room for elsewhere, and full ones
//! into the gaps of others.

use super::free::Free;
use super::step::{PlanAction, PlanStep};
use crate::blocks::map::{Block, BlockFlags, BlockMap};
use crate::blocks::policy::guest_memory::{GATHER_FROM, reserve};
use crate::blocks::policy::{Costs, Goals};
use crate::units::{
    BLOCK_SIZE, BlockId, Bytes, PAGE_SIZE, PAGES_PER_BLOCK, Pages, SaturatingInto, usize_from,
};

/// Pages of a block that is in use that are absent and may be used.
fn gaps(block: &Block) -> u64 {
    if block.present == 0 {
        return 0;
    }
    let gone = block.ballooned.saturating_sub(block.wasted);
    PAGES_PER_BLOCK.saturating_sub(u64::from(block.present) + u64::from(gone))
}

/// Sparse blocks to evacuate, those with the fewest pages first, as long as the others have room. If
/// all were evacuated one after the other, each would fill those that come after it, and pages would
/// move again and again.
///
/// Room is what the guest has free in memory that is resident, and the gaps of the blocks that stay. A guest
/// that does not report its free memory is asked for all.
pub(super) fn evacuations<'a>(
    map: &BlockMap,
    blocks: impl Iterator<Item = (BlockId, &'a Block)>,
    goals: &Goals,
    costs: &Costs,
) -> Vec<PlanStep> {
    let is_sparse = |block: &Block| {
        let used = block.used();
        used.0 > 0 && goals.evacuate_up_to.is_some_and(|limit| used <= limit)
    };
    let mut sparse: Vec<(BlockId, &Block)> =
        blocks.filter(|(_, block)| !block.is_whole() && is_sparse(block)).collect();
    sparse.sort_by_key(|(id, block)| (block.used(), *id));
    if let Some(free) = Free::of(map, &map.totals()) {
        let mut room = map.iter().map(|(_, block)| gaps(block)).sum::<u64>();
        room += free.held.0 / PAGE_SIZE;
        let mut moved = 0;
        let fits = |(_, block): &(BlockId, &Block)| {
            moved += block.used().0;
            room = room.saturating_sub(gaps(block));
            moved <= room
        };
        let count = sparse.iter().copied().take_while(fits).count();
        sparse.truncate(count);
    }
    sparse.into_iter().map(|(id, block)| evacuate(id, block, costs)).collect()
}

/// Blocks to evacuate into the gaps of others, the highest first, since immovable pages lie low.
/// Only with enough free memory elsewhere that the guest does not notice.
pub(super) fn squeeze(map: &BlockMap, goals: &Goals, costs: &Costs) -> Vec<PlanStep> {
    let wanted = || {
        let totals = map.totals();
        let free = Free::of(map, &totals)?;
        let spare = free.absent.saturating_sub(reserve(totals.ram));
        let worth_it = free.held.0 >= totals.resident.0 / GATHER_FROM;
        worth_it.then(|| free.held.min(spare).0 / BLOCK_SIZE)
    };
    let wanted = (goals.squeeze && goals.scope.is_none()).then(wanted).flatten().unwrap_or(0);
    let full: Vec<(BlockId, &Block)> = map
        .iter()
        .filter(|(_, b)| u64::from(b.present) == PAGES_PER_BLOCK && !b.has_holes())
        .filter(|(_, b)| !b.flags.intersects(BlockFlags::LEFT_OUT | BlockFlags::CMA))
        // The other blocks are evacuated anyway.
        .filter(|(_, b)| goals.evacuate_up_to.is_none_or(|limit| b.used() > limit))
        .collect();
    let count = usize_from(wanted);
    full.iter().rev().take(count).map(|(id, block)| press_out(*id, block, costs)).collect()
}

fn press_out(id: BlockId, block: &Block, costs: &Costs) -> PlanStep {
    let whole = Pages(PAGES_PER_BLOCK).bytes();
    PlanStep { frees: whole, makes_huge: Bytes(0), ..evacuate(id, block, costs) }
}

fn evacuate(id: BlockId, block: &Block, costs: &Costs) -> PlanStep {
    let used = block.used();
    let absent = PAGES_PER_BLOCK - u64::from(block.present);
    PlanStep {
        action: PlanAction::Evacuate(id),
        // Moved pages need room elsewhere, which costs nothing only where pages are present. A plan
        // may count on half.
        frees: Pages(used.0.div_ceil(2)).bytes(),
        makes_huge: Pages(absent.min(used.0)).bytes(),
        copies: used.bytes(),
        takes: costs.evacuate_page * used.0.saturating_u32(),
    }
}
