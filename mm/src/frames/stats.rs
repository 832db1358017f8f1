// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the pool tells about itself: accounting, free units as in `/proc/buddyinfo` and
//! `/proc/pagetypeinfo`, and counters of events.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buddy::{BlockUsage, block_usage};
use super::ids::{BLOCK_FRAMES, NR_ORDERS, Order};
use super::page::Kind;
use super::pageblock::{MigrateType, NR_TYPES};
use super::pool::FramePool;

/// Where all frames are. `free + used + isolated == total`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Frames in the pool.
    pub total: u32,
    /// Free: on free lists or in a thread's cache.
    pub free: u32,
    /// Of the free ones, those in caches.
    pub cached: u32,
    /// Of the free ones, those in CMA blocks.
    pub free_cma: u32,
    /// Allocated and in their owners' hands.
    pub used: u32,
    /// Out of reach for the moment: allocated frames isolated for migration, free ones in
    /// isolated blocks, and destinations that compaction holds.
    pub isolated: u32,
}

impl Accounting {
    /// Whether the parts add up to the whole.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        u64::from(self.free) + u64::from(self.used) + u64::from(self.isolated)
            == u64::from(self.total)
    }
}

/// Free units by type and order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeInfo {
    /// Units on the list of `[type][order]`.
    pub units: [[u32; NR_ORDERS]; NR_TYPES],
    /// Blocks of each type.
    pub blocks: [u32; NR_TYPES],
}

impl FreeInfo {
    /// Free units of one order, whatever their type.
    #[must_use]
    pub fn units_of(&self, order: Order) -> u32 {
        self.units.iter().map(|of| of[order.as_usize()]).sum()
    }

    /// Free units of `order` if every larger unit were split.
    #[must_use]
    pub fn available(&self, order: Order) -> u32 {
        order.and_above().map(|o| self.units_of(o) << (o.get() - order.get())).sum()
    }

    /// Free units of `order` in blocks of one type if every larger unit were split.
    #[must_use]
    pub fn available_of(&self, of: MigrateType, order: Order) -> u32 {
        let units = &self.units[of.as_usize()];
        order.and_above().map(|o| units[o.as_usize()] << (o.get() - order.get())).sum()
    }

    /// Blocks of one type.
    #[must_use]
    pub fn blocks_of(&self, of: MigrateType) -> u32 {
        self.blocks[of.as_usize()]
    }
}

impl fmt::Display for FreeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:12}{:>8}", "free units", "blocks")?;
        for order in Order::all() {
            write!(f, "{:>7}", order.get())?;
        }
        for of in MigrateType::ALL {
            write!(f, "\n{:12}{:>8}", format!("{of:?}"), self.blocks_of(of))?;
            for units in self.units[of.as_usize()] {
                write!(f, "{units:>7}")?;
            }
        }
        Ok(())
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of what happened since the pool was made.
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
    /// Frames looked at by compaction's scanner for movable frames.
    migrate_scanned,
    /// Free frames taken by compaction as destinations.
    free_taken,
    /// Frames isolated, for compaction or contiguous allocation.
    isolated,
    /// Frames moved.
    moved,
    /// Isolated frames that their owner had freed meanwhile.
    freed_while_isolated,
    /// Frames that could not be moved and were put back.
    move_failed,
    /// Callbacks that panicked, shrinkers' included.
    ops_panicked,
    /// Migrations reported as done whose source was not released.
    ops_lied,
    /// Allocations that compacted by themselves.
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

impl FramePool {
    /// Where all frames are. Exact: takes every lock for a moment.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        let caches: Vec<_> = self.caches.all().collect();
        let zone = self.zone();
        let cached: usize = caches.iter().map(|c| c.cached()).sum();
        let used = zone.used + caches.iter().map(|c| c.used).sum::<i64>();
        let moving = self.isolated.load(Ordering::Relaxed);
        let withheld = zone.buddy.free_of(MigrateType::Isolate);
        let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        // Cached frames are at most a part of the pool.
        #[allow(clippy::cast_possible_truncation)]
        let cached = cached as u32;
        Accounting {
            total: self.frame_count(),
            free: zone.buddy.free_usable() + cached,
            cached,
            free_cma: zone.buddy.free_of(MigrateType::Cma),
            used: number(used - moving),
            isolated: number(moving) + withheld + zone.held,
        }
    }

    /// Free units by type and order, and the types of the blocks.
    #[must_use]
    pub fn free_info(&self) -> FreeInfo {
        let zone = self.zone();
        let mut info = FreeInfo { units: [[0; NR_ORDERS]; NR_TYPES], blocks: [0; NR_TYPES] };
        for of in MigrateType::ALL {
            for order in Order::all() {
                info.units[of.as_usize()][order.as_usize()] = zone.buddy.count(of, order);
            }
        }
        for block in self.blocks.iter() {
            info.blocks[self.blocks.type_of(block).as_usize()] += 1;
        }
        info
    }

    /// Counters of events.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events.snapshot()
    }

    /// Share of the free memory outside whole free blocks, 0 to 100: how much a request for a
    /// block would find broken up.
    #[must_use]
    pub fn fragmentation(&self) -> u32 {
        let free = self.zone().buddy.free_usable();
        let whole = self.free_info().available(Order::BLOCK) * BLOCK_FRAMES;
        100 - (u64::from(whole.min(free)) * 100).checked_div(free.into()).map_or(100, |p| {
            // A share of a hundred.
            u32::try_from(p).unwrap_or(100)
        })
    }

    /// Blocks by what keeps them from being free: `(free, only movable, with fixed frames)`.
    #[must_use]
    pub fn block_kinds(&self) -> (u32, u32, u32) {
        let _zone = self.zone();
        let mut kinds = (0, 0, 0);
        for block in self.blocks.iter() {
            let covering = self.meta(block.first().align_down(Order::MAX)).load();
            let free = covering.kind() == Kind::Buddy && covering.order() == Order::MAX;
            match block_usage(self.tables(), block) {
                _ if free => kinds.0 += 1,
                BlockUsage { movable: 0, fixed: 0, .. } => kinds.0 += 1,
                BlockUsage { fixed: 0, .. } => kinds.1 += 1,
                _ => kinds.2 += 1,
            }
        }
        kinds
    }
}
