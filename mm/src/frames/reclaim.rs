// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls shrinkers when too few frames are free.

use super::callbacks::holds_frame;
use super::gfp::Gfp;
use super::ids::Order;
use super::pageblock::Mobility;
use super::pool_core::PoolCore;

fn shrink(core: &PoolCore, frames: u32) -> u64 {
    let given = core.shrinkers().shrink(frames.into(), core.events());
    if given > 0 {
        core.drain_caches();
    }
    given
}

/// Makes room for an allocation that found too little free. `false` if no frame was freed, or if
/// the allocation failed for another reason.
pub(super) fn for_allocation(core: &PoolCore, order: Order, gfp: Gfp) -> bool {
    if !gfp.may_compact() || holds_frame() {
        return false;
    }
    let wanted = core.marks().high.saturating_add(order.frames());
    let free = {
        let zone = core.zone();
        let mark = if gfp.is_emergency() { 0 } else { core.marks().min };
        if zone.is_above(mark, order, gfp.mobility()) {
            return false;
        }
        zone.free_for(gfp.mobility())
    };
    shrink(core, wanted.saturating_sub(free).max(1)) > 0
}

/// The background thread's part: from below `low` up to `high`.
pub(super) fn balance(core: &PoolCore) {
    let free = core.zone().free_for(Mobility::Movable);
    if free < core.marks().low {
        shrink(core, core.marks().high.saturating_sub(free));
    }
}
