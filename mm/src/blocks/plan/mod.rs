// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a map and goals to an ordered list of actions: a pure function.
//!
//! The action for a block, by its state and stage:
//!
//! | used pages | ballooned or reported | action                                       | stage |
//! |------------|-----------------------|----------------------------------------------|-------|
//! | few        | some, or many absent  | the guest evacuates it                       | evacuate |
//! | all        | none                  | the guest evacuates it into gaps of others   | squeeze |
//! | none       | all that is present   | discard it whole                             | host |
//! | some       | some that is present  | discard those pages, if many or not huge     | host |
//! | many       | none, and not huge    | collapse it                                  | host |
//! | any        | none, and not huge    | back it whole, where that is wanted          | host |
//!
//! In stage gather, the guest makes whole blocks from its free memory that is still resident on the
//! host and from single pages of the balloon.
//!
//! Four laws hold for every plan, and are tested: no byte is discarded that the guest may still
//! read; no block with holes is collapsed, for that would fill them; the guest keeps what its kernel
//! needs free; the limits are not exceeded.
//!
//! - `step.rs`: one thing to do, and what it should bring and cost
//! - `free.rs`: where the guest's free memory lies on the host
//! - `evacuations.rs`: which blocks the guest evacuates, and why not more

mod evacuations;
mod free;
mod step;

use std::cmp::Reverse;
use std::time::Duration;

use self::evacuations::{evacuations, squeeze};
use self::free::Free;
pub use self::step::{GatherOrder, PlanAction, PlanStep};
use super::map::{Block, BlockFlags, BlockMap};
use super::policy::guest_memory::{EXCHANGE_PART, GATHER_FROM, reserve};
use super::policy::{Costs, Goals, PassLimits};
use super::stage::Stage;
use crate::units::{BLOCK_SIZE, BlockId, Bytes, PAGE_SIZE, PAGES_PER_BLOCK, Pages, SaturatingInto};

/// What a pass is to do, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps within the limits, by gain for their cost.
    pub steps: Vec<PlanStep>,
    /// Useful steps beyond the limits.
    pub left_out: usize,
}

/// Plans `stage` of a pass over `map`.
pub fn plan(
    map: &BlockMap,
    goals: &Goals,
    stage: Stage,
    limits: PassLimits,
    costs: &Costs,
) -> Plan {
    let in_scope = |id: BlockId| match goals.scope {
        None => true,
        Some(scope) => id.checked_range().is_some_and(|range| scope.covers(&range)),
    };
    let blocks = map
        .iter()
        .filter(|(id, block)| in_scope(*id) && !block.flags.contains(BlockFlags::LEFT_OUT));
    let mut wanted: Vec<PlanStep> = match stage {
        Stage::Gather => gather(map, goals, limits, costs).into_iter().collect(),
        Stage::Squeeze => squeeze(map, goals, costs),
        Stage::Evacuate { .. } => evacuations(map, blocks, goals, costs),
        Stage::Host => {
            blocks.flat_map(|(id, block)| host_steps(map, id, block, goals, costs)).collect()
        }
    };
    wanted.sort_by_key(|step| (Reverse(step.merit()), step.action));
    let (mut bytes, mut time) = (limits.bytes, limits.time);
    let mut plan = Plan::default();
    for step in wanted {
        let left = bytes.0.checked_sub(step.copies.0).zip(time.checked_sub(step.takes));
        match left {
            Some((b, t)) => {
                (bytes, time) = (Bytes(b), t);
                plan.steps.push(step);
            }
            None => plan.left_out += 1,
        }
    }
    plan
}

/// What the host can do for block `id`: at most a discard, and one way to make it huge.
fn host_steps(
    map: &BlockMap,
    id: BlockId,
    block: &Block,
    goals: &Goals,
    costs: &Costs,
) -> impl Iterator<Item = PlanStep> + use<> {
    let splits =
        block.used().0 > 0 && block.flags.intersects(BlockFlags::HUGE | BlockFlags::UNSURE);
    let least = if splits { goals.split_from.0.max(1) } else { 1 };
    let worth_it = goals.discard && u64::from(block.wasted) >= least;
    let discard = worth_it.then(|| discard(map, id, block, costs));
    let dense = |from: Pages| block.used().0 > 0 && block.used() >= from;
    let huge = if block.has_holes() || block.is_whole() {
        None
    } else if goals.back || (goals.back_gpu && in_one_sweep(block)) {
        Some(back(id, block, costs))
    } else if goals.collapse_from.is_some_and(dense) {
        Some(collapse(id, block, costs))
    } else {
        None
    };
    discard.into_iter().chain(huge)
}

fn discard(map: &BlockMap, id: BlockId, block: &Block, costs: &Costs) -> PlanStep {
    let wasted = Pages(u64::from(block.wasted));
    let takes = if block.used().0 == 0 {
        costs.discard_block
    } else {
        let runs = map.wasted(id).runs().count().saturating_u32();
        let split = block.flags.intersects(BlockFlags::HUGE | BlockFlags::UNSURE);
        costs.discard_run * runs + if split { costs.split } else { Duration::ZERO }
    };
    let none = Bytes(0);
    PlanStep {
        action: PlanAction::Discard(id),
        frees: wasted.bytes(),
        makes_huge: none,
        copies: none,
        takes,
    }
}

fn collapse(id: BlockId, block: &Block, costs: &Costs) -> PlanStep {
    PlanStep {
        action: PlanAction::Collapse(id),
        frees: Bytes(0),
        makes_huge: block.used().bytes(),
        copies: block.used().bytes(),
        takes: costs.collapse,
    }
}

/// Whether one device uses the whole block, as a GPU resource can: such a block should be huge with
/// any contents.
fn in_one_sweep(block: &Block) -> bool {
    u64::from(block.gpu) == PAGES_PER_BLOCK
}

fn back(id: BlockId, block: &Block, costs: &Costs) -> PlanStep {
    let whole = Pages(PAGES_PER_BLOCK).bytes();
    PlanStep {
        action: PlanAction::Back(id),
        frees: Bytes(0),
        makes_huge: whole,
        copies: block.used().bytes(),
        takes: costs.collapse,
    }
}

/// What the guest can lend for the pass, if it reports its free memory.
pub(super) fn spare(map: &BlockMap) -> Option<Bytes> {
    Some(map.guest_free()?.saturating_sub(reserve(map.totals().ram)))
}

/// The guest's free memory that is resident, and single pages of the balloon, in whole blocks.
fn gather(map: &BlockMap, goals: &Goals, limits: PassLimits, costs: &Costs) -> Option<PlanStep> {
    if !goals.gather || goals.scope.is_some() {
        return None;
    }
    let totals = map.totals();
    let free = Free::of(map, &totals)?;
    let reserve = reserve(totals.ram);
    let held = free.held.saturating_sub(reserve);
    let cut = |b: &Block| b.ballooned > 0 && u64::from(b.ballooned) < PAGES_PER_BLOCK;
    let cut: Vec<&Block> = map.iter().map(|(_, b)| b).filter(|b| cut(b)).collect();
    let single = Pages(cut.iter().map(|b| u64::from(b.ballooned)).sum()).bytes();
    let cut = Pages(cut.iter().map(|b| b.used().0).sum()).bytes();
    let gain = held.saturating_add(cut);
    if gain.0 == 0 || gain.0 < totals.resident.0 / GATHER_FROM {
        return None;
    }
    let moved = free.moved_for_a_block(single);
    let time = costs.evacuate_page * moved.div_ceil(PAGE_SIZE).saturating_u32();
    let by_time = limits.time.as_nanos() / time.as_nanos().max(1);
    let most = (limits.bytes.0 / moved).min(by_time.saturating_u64()).saturating_u32();
    let blocks = |bytes: Bytes| (bytes.0 / BLOCK_SIZE).saturating_u32();
    let lend = blocks(free.all.saturating_sub(reserve)).min(most);
    // Without room of its own the guest would be short of memory while it gathers.
    if lend == 0 {
        return None;
    }
    // A host that has no memory to make blocks huge has none for pages that leave the balloon.
    let single = if goals.collapse_from.is_some() { single } else { Bytes(0) };
    let exchange = blocks(single.min(Bytes(totals.ram.0 / EXCHANGE_PART))).min(most - lend);
    let count = lend + exchange;
    Some(PlanStep {
        action: PlanAction::Gather(GatherOrder { lend, exchange }),
        frees: held.min(Bytes(u64::from(lend) * BLOCK_SIZE)),
        makes_huge: cut,
        copies: Bytes(u64::from(count) * moved),
        takes: time * count,
    })
}

#[cfg(test)]
mod tests;
