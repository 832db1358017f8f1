// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How an allocation is served, from the cheapest path to the most expensive one.

use super::compaction;
use super::gfp::{AllocError, Gfp};
use super::ids::{FrameId, Order};
use super::pool_core::PoolCore;
use super::reclaim;

/// Allocates a unit of `order`.
#[inline]
pub(super) fn alloc(core: &PoolCore, order: Order, gfp: Gfp) -> Result<FrameId, AllocError> {
    if order == Order::ZERO
        && let Some(frame) = core.alloc_cached(gfp.mobility())
    {
        return Ok(frame);
    }
    alloc_slow(core, order, gfp)
}

/// Free lists above `low`; then, down to `min`, with the caches drained, after shrinking, after
/// compaction.
#[cold]
fn alloc_slow(core: &PoolCore, order: Order, gfp: Gfp) -> Result<FrameId, AllocError> {
    let marks = core.marks();
    if let Some(frame) = core.take(order, gfp, marks.low) {
        return Ok(frame);
    }
    if gfp.may_compact() {
        core.wakeup().wake(order);
    }
    core.drain_caches();
    if let Some(frame) = core.take(order, gfp, marks.min) {
        return Ok(frame);
    }
    if reclaim::for_allocation(core, order, gfp)
        && let Some(frame) = core.take(order, gfp, marks.min)
    {
        return Ok(frame);
    }
    if let Some(frame) = compaction::alloc_compacting(core, order, gfp) {
        return Ok(frame);
    }
    let zone = core.zone();
    let free = zone.free_for(gfp.mobility());
    let mark = if gfp.is_emergency() { 0 } else { marks.min };
    if zone.is_above(mark, order, gfp.mobility()) {
        Err(AllocError::Fragmented { order, free })
    } else {
        Err(AllocError::NoMemory { order, free })
    }
}
