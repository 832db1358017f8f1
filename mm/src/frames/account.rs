// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the pool reports about itself: accounting, free units as in `/proc/buddyinfo` and
//! `/proc/pagetypeinfo`.

use std::fmt;

use super::buddy::{BlockUsage, block_usage};
use super::ids::{BLOCK_FRAMES, NR_ORDERS, Order};
use super::page::FrameKind;
use super::pageblock::{MigrateType, NR_TYPES};
use super::pool_core::PoolCore;
use crate::units::SaturatingInto;

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
    /// Allocated, and not isolated.
    pub used: u32,
    /// Not available at the moment: allocated frames isolated for migration, free ones in
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
    /// Free units of one order, of all types.
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

/// Blocks by what prevents them from being free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockKinds {
    /// Wholly free.
    pub free: u32,
    /// With allocated frames, all of them movable.
    pub movable: u32,
    /// With at least one frame that cannot move.
    pub fixed: u32,
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

/// Where all frames are. Takes every lock for a moment.
pub(super) fn accounting(core: &PoolCore) -> Accounting {
    let caches: Vec<_> = core.caches().all().collect();
    let zone = core.zone();
    let cached: usize = caches.iter().map(|c| c.cached()).sum();
    let used = zone.used() + caches.iter().map(|c| c.used).sum::<i64>();
    let moving = core.isolated();
    let withheld = zone.buddy().free_of(MigrateType::Isolate);
    let number = |n: i64| n.saturating_u32();
    // Cached frames are at most a part of the pool.
    let cached = cached as u32;
    Accounting {
        total: core.frame_count(),
        free: zone.buddy().free_usable() + cached,
        cached,
        free_cma: zone.buddy().free_of(MigrateType::Cma),
        used: number(used - moving),
        isolated: number(moving) + withheld + zone.held(),
    }
}

pub(super) fn free_info(core: &PoolCore) -> FreeInfo {
    let zone = core.zone();
    let mut info = FreeInfo { units: [[0; NR_ORDERS]; NR_TYPES], blocks: [0; NR_TYPES] };
    for of in MigrateType::ALL {
        for order in Order::all() {
            info.units[of.as_usize()][order.as_usize()] = zone.buddy().count(of, order);
        }
    }
    for block in core.blocks().iter() {
        info.blocks[core.blocks().type_of(block).as_usize()] += 1;
    }
    info
}

pub(super) fn fragmentation(core: &PoolCore) -> u32 {
    let free = core.zone().buddy().free_usable();
    let whole = free_info(core).available(Order::BLOCK) * BLOCK_FRAMES;
    100 - (u64::from(whole.min(free)) * 100)
        .checked_div(free.into())
        .map_or(100, |percent| percent.saturating_u32())
}

pub(super) fn block_kinds(core: &PoolCore) -> BlockKinds {
    let _zone = core.zone();
    let mut kinds = BlockKinds::default();
    for block in core.blocks().iter() {
        let covering = core.meta(block.first().align_down(Order::MAX)).load();
        let free = covering.kind() == FrameKind::Buddy && covering.order() == Order::MAX;
        match block_usage(core.tables(), block) {
            _ if free => kinds.free += 1,
            BlockUsage { movable: 0, fixed: 0, .. } => kinds.free += 1,
            BlockUsage { fixed: 0, .. } => kinds.movable += 1,
            _ => kinds.fixed += 1,
        }
    }
    kinds
}
