// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that its holders can do without: whom to ask when too little is free.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::ids::Order;
use super::movable::{call, holds_frame};
use super::pageblock::Mobility;
use super::pool::{FramePool, Gfp};
use super::stats::add;

/// Who holds frames that it can give back: caches, and whatever could be packed tighter.
///
/// The rules are those of [`MovableOps`](super::MovableOps): it may free frames; it may allocate,
/// but nothing is compacted or given back for that; a panic is reported and counts as nothing
/// given. It is called by threads that allocate, so it must only *try* what such a thread may hold.
pub trait Shrink: Send + Sync {
    /// Gives back about `frames` frames, or what there is. Returns how many it were.
    fn shrink(&self, frames: u64) -> u64;
}

/// All who registered, in that order.
#[derive(Default)]
pub(super) struct Shrinkers(RwLock<Vec<Weak<dyn Shrink>>>);

impl Shrinkers {
    fn alive(&self) -> Vec<Arc<dyn Shrink>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl FramePool {
    /// Registers somebody to ask for frames when too few are free: by allocations that would fail
    /// otherwise, and by the background thread below the `low` watermark, up to `high`. The pool
    /// does not keep it alive.
    pub fn register_shrinker(&self, shrinker: Weak<dyn Shrink>) {
        let mut all = self.shrinkers.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(shrinker);
    }

    /// Asks one after the other until `frames` frames were given back; returns how many it were.
    fn shrink(&self, frames: u64) -> u64 {
        let mut given = 0;
        for shrinker in self.shrinkers.alive() {
            if given >= frames {
                break;
            }
            // Its end, if this was its last user, is a callback too.
            let one = call(move || shrinker.shrink(frames - given));
            given += one.unwrap_or_else(|| {
                add(&self.events.ops_panicked, 1);
                0
            });
        }
        add(&self.events.shrunk, given);
        if given > 0 {
            self.drain_caches();
        }
        given
    }

    /// Makes room for an allocation that found too little free. `false` if none was made, or if
    /// what is short is not room.
    pub(super) fn shrink_for(&self, order: Order, gfp: Gfp) -> bool {
        if !gfp.may_compact() || holds_frame() {
            return false;
        }
        let wanted = self.marks.high.saturating_add(order.frames());
        let free = {
            let zone = self.zone();
            let mark = if gfp.is_emergency() { 0 } else { self.marks.min };
            if zone.is_above(mark, order, gfp.mobility()) {
                return false;
            }
            zone.free_for(gfp.mobility())
        };
        self.shrink(wanted.saturating_sub(free).max(1).into()) > 0
    }

    /// The background thread's part: from below `low` to `high`.
    pub(super) fn balance(&self) {
        let free = self.zone().free_for(Mobility::Movable);
        if free < self.marks.low {
            self.shrink(self.marks.high.saturating_sub(free).into());
        }
    }
}
