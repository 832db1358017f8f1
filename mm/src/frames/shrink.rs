// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Owners that can free frames on request.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::callbacks::call;
use super::events::{EventCounters, add};

/// An owner of frames that can free some on request: a cache, or a heap that can be packed tighter.
///
/// The rules are those of [`MovableOps`](super::MovableOps): it may free frames; it may allocate,
/// but the pool neither compacts nor asks shrinkers for that; a panic is reported and counts as no
/// frame freed. It is called by threads that allocate, so it must only *try* to take locks that
/// such a thread may hold.
///
/// A trait although zsmalloc is its only implementor: zsmalloc depends on the pool, not the reverse.
pub trait Shrink: Send + Sync {
    /// Frees up to about `frames` frames. Returns how many it freed.
    fn shrink(&self, frames: u64) -> u64;
}

/// All registered shrinkers, in the order of registration.
#[derive(Default)]
pub(super) struct Shrinkers(RwLock<Vec<Weak<dyn Shrink>>>);

impl Shrinkers {
    pub(super) fn register(&self, shrinker: Weak<dyn Shrink>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(shrinker);
    }

    fn alive(&self) -> Vec<Arc<dyn Shrink>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Asks one after the other until `frames` frames were freed; returns how many were.
    pub(super) fn shrink(&self, frames: u64, events: &EventCounters) -> u64 {
        let mut given = 0;
        for shrinker in self.alive() {
            if given >= frames {
                break;
            }
            // If the pool is its last user, its drop runs inside `call` too.
            let one = call(move || shrinker.shrink(frames - given));
            given += one.unwrap_or_else(|| {
                add(&events.ops_panicked, 1);
                0
            });
        }
        add(&events.shrunk, given);
        given
    }
}
