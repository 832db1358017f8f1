// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one lock guards: free lists, the count of what is out, and compaction's memory.

use super::buddy::{Buddy, Found, Tables};
use super::compaction::{Cursor, Deferral};
use super::ids::{FrameId, FrameRange, Order};
use super::page::{Kind, Word};
use super::pageblock::{MigrateType, Mobility};
use super::pool::Gfp;

/// Levels of free memory, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Only emergency allocations go below.
    pub min: u32,
    /// Below this the background thread is woken, and asks shrinkers for memory.
    pub low: u32,
    /// That many it asks for.
    pub high: u32,
}

impl Watermarks {
    /// A thousandth of the pool as reserve, and a quarter of that between the levels.
    #[must_use]
    pub const fn for_frames(frames: u32) -> Self {
        let min = frames / 1024;
        Self { min, low: min + min / 4, high: min + min / 2 }
    }
}

pub(super) struct Zone {
    pub(super) buddy: Buddy,
    /// Frames allocated less frames freed, apart from those that went through a cache.
    pub(super) used: i64,
    /// Free frames that compaction or contiguous allocation has taken off the lists.
    pub(super) held: u32,
    pub(super) cursor: Cursor,
    pub(super) deferral: Deferral,
    /// Units that fell back to another type, and blocks stolen for good.
    pub(super) fallbacks: u64,
    pub(super) steals: u64,
}

impl Zone {
    pub(super) fn new(frames: u32) -> Self {
        Self {
            buddy: Buddy::new(),
            used: 0,
            held: 0,
            cursor: Cursor::new(frames),
            deferral: Deferral::default(),
            fallbacks: 0,
            steals: 0,
        }
    }

    /// Free frames that an allocation may count on.
    pub(super) fn free_for(&self, mobility: Mobility) -> u32 {
        let cma = if mobility.may_use_cma() { 0 } else { self.buddy.free_of(MigrateType::Cma) };
        self.buddy.free_usable() - cma
    }

    /// Whether `mark` frames would still be free after allocating a unit.
    pub(super) fn is_above(&self, mark: u32, order: Order, mobility: Mobility) -> bool {
        self.free_for(mobility) >= mark.saturating_add(order.frames())
    }

    fn take(&mut self, t: Tables<'_>, order: Order, mobility: Mobility) -> Option<FrameId> {
        let (frame, found) = self.buddy.alloc(t, order, mobility)?;
        match found {
            Found::Own | Found::Cma => {}
            Found::Fallback => self.fallbacks += 1,
            Found::Stolen => {
                self.fallbacks += 1;
                self.steals += 1;
            }
        }
        Some(frame)
    }

    /// Allocates a unit if that leaves `mark` frames free.
    pub(super) fn alloc(
        &mut self,
        t: Tables<'_>,
        order: Order,
        gfp: Gfp,
        mark: u32,
    ) -> Option<FrameId> {
        let mark = if gfp.is_emergency() { 0 } else { mark };
        if !self.is_above(mark, order, gfp.mobility()) {
            return None;
        }
        let frame = self.take(t, order, gfp.mobility())?;
        t.frames.meta(frame).store(Word::used(order));
        self.used += i64::from(order.frames());
        Some(frame)
    }

    /// Takes a frame for a cache.
    pub(super) fn take_cached(
        &mut self,
        t: Tables<'_>,
        mobility: Mobility,
        mark: u32,
    ) -> Option<FrameId> {
        if !self.is_above(mark, Order::ZERO, mobility) {
            return None;
        }
        let frame = self.take(t, Order::ZERO, mobility)?;
        t.frames.meta(frame).store(Word::of(Kind::Cached, Order::ZERO));
        Some(frame)
    }

    /// Takes a frame as a migration destination.
    pub(super) fn take_held(&mut self, t: Tables<'_>, mark: u32) -> Option<FrameId> {
        if !self.is_above(mark, Order::ZERO, Mobility::Movable) {
            return None;
        }
        let frame = self.take(t, Order::ZERO, Mobility::Movable)?;
        t.frames.meta(frame).store(Word::of(Kind::Held, Order::ZERO));
        self.held += 1;
        Some(frame)
    }

    /// Puts an unused destination back.
    pub(super) fn release_held(&mut self, t: Tables<'_>, frame: FrameId) {
        self.buddy.free(t, frame, Order::ZERO);
        self.held -= 1;
    }

    /// Frees an allocated unit.
    pub(super) fn free(&mut self, t: Tables<'_>, frame: FrameId, order: Order) {
        self.buddy.free(t, frame, order);
        self.used -= i64::from(order.frames());
    }

    /// Frees a run of allocated single frames.
    pub(super) fn free_range(&mut self, t: Tables<'_>, range: FrameRange) {
        for frame in range.frames() {
            t.frames.meta(frame).store(Word::of(Kind::Tail, Order::ZERO));
        }
        self.buddy.free_range(t, range);
        self.used -= i64::from(range.count());
    }
}
