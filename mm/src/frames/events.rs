// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event counters of a pool.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Event counters since the pool was created.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Events { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Default)]
        pub(super) struct EventCounters { $(pub(super) $name: AtomicU64,)* }

        impl EventCounters {
            pub(super) fn snapshot(&self) -> Events {
                Events { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

events! {
    /// Frames scanned by compaction's scanner for movable frames.
    migrate_scanned,
    /// Free frames taken by compaction as destinations.
    free_taken,
    /// Frames isolated, for compaction or contiguous allocation.
    isolated,
    /// Frames moved.
    moved,
    /// Isolated frames that their owner freed before the migration.
    freed_while_isolated,
    /// Frames that could not be moved and were put back.
    move_failed,
    /// Callbacks that panicked, including shrinkers'.
    ops_panicked,
    /// Migrations reported as done whose source was not released.
    ops_lied,
    /// Allocations that ran compaction (direct compaction).
    compact_stall,
    /// Direct compactions after which the allocation succeeded.
    compact_success,
    /// Direct compactions after which it did not.
    compact_fail,
    /// Direct compactions not tried because of earlier failures.
    compact_deferred,
    /// Frames that shrinkers gave back.
    shrunk,
    /// Runs of the background thread.
    background_runs,
    /// Contiguous allocations that succeeded.
    contig_success,
    /// Contiguous allocations that failed.
    contig_fail,
}

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    if amount != 0 {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
