// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state guarded by one lock: the free lists, the number of allocated frames, and compaction's
//! cursor. Every change to them is a method here.

use super::buddy::{Buddy, Tables};
use super::gfp::Gfp;
use super::ids::{FrameBlock, FrameId, FrameRange, Order};
use super::page::{FrameKind, Word};
use super::pageblock::{MigrateType, Mobility};
use super::scan_cursor::{Deferral, ScanCursor};

pub(super) struct Zone {
    buddy: Buddy,
    /// Frames allocated less frames freed, apart from those that went through a cache.
    used: i64,
    /// Free frames that compaction or contiguous allocation has taken off the lists.
    held: u32,
    cursor: ScanCursor,
    deferral: Deferral,
}

impl Zone {
    pub(super) fn new(frames: u32) -> Self {
        Self {
            buddy: Buddy::new(),
            used: 0,
            held: 0,
            cursor: ScanCursor::new(frames),
            deferral: Deferral::default(),
        }
    }

    /// The free lists, to look at.
    pub(super) fn buddy(&self) -> &Buddy {
        &self.buddy
    }

    /// Frames allocated less frames freed, apart from those that went through a cache.
    pub(super) fn used(&self) -> i64 {
        self.used
    }

    /// Free frames off the lists: destinations of migrations.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Where compaction's scanners stopped.
    pub(super) fn cursor(&mut self) -> &mut ScanCursor {
        &mut self.cursor
    }

    /// Which requests are served without compaction.
    pub(super) fn deferral(&mut self) -> &mut Deferral {
        &mut self.deferral
    }

    /// Free frames available to an allocation.
    pub(super) fn free_for(&self, mobility: Mobility) -> u32 {
        let cma = if mobility.may_use_cma() { 0 } else { self.buddy.free_of(MigrateType::Cma) };
        self.buddy.free_usable() - cma
    }

    /// Whether `mark` frames would still be free after allocating a unit.
    pub(super) fn is_above(&self, mark: u32, order: Order, mobility: Mobility) -> bool {
        self.free_for(mobility) >= mark.saturating_add(order.frames())
    }

    /// Puts frames on the free lists that were never allocated.
    pub(super) fn add_free(&mut self, t: Tables<'_>, range: FrameRange) {
        if range.count() > 0 {
            self.buddy.free_range(t, range);
        }
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
        let frame = self.buddy.alloc(t, order, gfp.mobility())?;
        t.frames.meta(frame).store(Word::used(order));
        self.used += i64::from(order.frames());
        Some(frame)
    }

    /// Frees an allocated unit.
    pub(super) fn free(&mut self, t: Tables<'_>, frame: FrameId, order: Order) {
        self.buddy.free(t, frame, order);
        self.used -= i64::from(order.frames());
    }

    /// Frees a run of allocated single frames.
    pub(super) fn free_range(&mut self, t: Tables<'_>, range: FrameRange) {
        for frame in range.frames() {
            t.frames.meta(frame).store(Word::of(FrameKind::Tail, Order::ZERO));
        }
        self.buddy.free_range(t, range);
        self.used -= i64::from(range.count());
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
        let frame = self.buddy.alloc(t, Order::ZERO, mobility)?;
        t.frames.meta(frame).store(Word::of(FrameKind::Cached, Order::ZERO));
        Some(frame)
    }

    /// Puts a frame back that a cache had; the cache counts it as freed, not the zone.
    pub(super) fn put_cached(&mut self, t: Tables<'_>, frame: FrameId) {
        self.buddy.free(t, frame, Order::ZERO);
    }

    /// Takes a frame as a migration destination.
    pub(super) fn take_held(&mut self, t: Tables<'_>, mark: u32) -> Option<FrameId> {
        if !self.is_above(mark, Order::ZERO, Mobility::Movable) {
            return None;
        }
        let frame = self.buddy.alloc(t, Order::ZERO, Mobility::Movable)?;
        t.frames.meta(frame).store(Word::of(FrameKind::Held, Order::ZERO));
        self.held += 1;
        Some(frame)
    }

    /// Takes all free units of a block that are smaller than `keep` as destinations, lowest
    /// frame first.
    pub(super) fn take_held_in(
        &mut self,
        t: Tables<'_>,
        block: FrameBlock,
        keep: Order,
        into: &mut Vec<FrameId>,
    ) {
        let mut at = block.first();
        while at < block.end() && at.index() < t.frames.len() {
            let word = t.frames.meta(at).load();
            match word.kind() {
                FrameKind::Buddy if word.order() >= keep => at = at.offset(word.order().frames()),
                FrameKind::Buddy => {
                    let order = self.buddy.remove(t, at);
                    self.held += order.frames();
                    for i in 0..order.frames() {
                        let frame = at.offset(i);
                        t.frames.meta(frame).store(Word::of(FrameKind::Held, Order::ZERO));
                        into.push(frame);
                    }
                    at = at.offset(order.frames());
                }
                _ => at = at.offset(1),
            }
        }
    }

    /// Puts an unused destination back.
    pub(super) fn release_held(&mut self, t: Tables<'_>, frame: FrameId) {
        self.buddy.free(t, frame, Order::ZERO);
        self.held -= 1;
    }

    /// Counts `frames` destinations as allocated: something was moved into them.
    pub(super) fn use_held(&mut self, frames: u32) {
        self.held -= frames;
        self.used += i64::from(frames);
    }

    /// Takes a range off the free lists if all of it is free; else names a frame that is not.
    pub(super) fn take_range(&mut self, t: Tables<'_>, range: FrameRange) -> Result<(), FrameId> {
        let first = t.covering_head(range.start);
        let mut at = first;
        while at < range.end {
            let word = t.frames.meta(at).load();
            if word.kind() != FrameKind::Buddy {
                return Err(at);
            }
            at = at.offset(word.order().frames());
        }
        let last = at;
        let mut at = first;
        while at < range.end {
            let order = self.buddy.remove(t, at);
            at = at.offset(order.frames());
        }
        for frame in range.frames() {
            t.frames.meta(frame).store(Word::used(Order::ZERO));
        }
        self.used += i64::from(range.count());
        // What the outermost units had beyond the range.
        self.add_free(t, FrameRange { start: first, end: range.start });
        self.add_free(t, FrameRange { start: range.end, end: last });
        Ok(())
    }

    /// Changes a block's type together with the lists of its free units.
    pub(super) fn retype_block(&mut self, t: Tables<'_>, block: FrameBlock, to: MigrateType) {
        self.buddy.retype_block(t, block, to);
    }

    /// Merges the free units of a block with their neighbours again after its type changed.
    pub(super) fn remerge_block(&mut self, t: Tables<'_>, block: FrameBlock) {
        self.buddy.remerge_block(t, block);
    }
}
