// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction: two scanners walk towards each other, one up the pool collecting movable frames,
//! one down collecting free frames, and what the first finds moves into what the second found.
//!
//! ```text
//!   |##.#.|.#..#|#....|     |..#.#|##.#.|###.#|      # movable   . free
//!    ^ sources ->                     <- targets ^
//! ```
//!
//! When they meet, the low blocks are empty and the high ones full. Where each stopped is
//! remembered for the next run, blocks in which a scanner found nothing are passed over until a
//! whole pass is done, and after a run that did not help the next ones are put off: 1, 2, 4 up to
//! 64 requests.

use std::sync::atomic::Ordering;

use super::ids::{BLOCK_FRAMES, BlockIndex, FrameId, Order};
use super::migrate::{BATCH, Mover, Targets};
use super::movable::{MigrateMode, holds_frame};
use super::page::{Kind, Word};
use super::pageblock::{MigrateType, Mobility, Skip};
use super::pool::FramePool;
use super::stats::add;
use super::zone::Zone;

/// What a run of compaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The whole pool, as far as it goes.
    Everything,
    /// Until one unit of this order can be allocated.
    Unit(Order, Mobility),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactEnd {
    /// The goal is reached.
    Success,
    /// The scanners met after a full pass.
    Complete,
    /// The scanners met after part of the pool.
    Partial,
    /// Too little free memory to move anything into.
    TooLittleFree,
    /// Earlier failures; not tried.
    Deferred,
    /// The budget ran out; the next run continues here.
    Budget,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactReport {
    /// How it ended.
    pub end: CompactEnd,
    /// Frames moved.
    pub moved: u64,
    /// Frames that could not be moved.
    pub failed: u64,
}

impl CompactReport {
    const fn nothing(end: CompactEnd) -> Self {
        Self { end, moved: 0, failed: 0 }
    }
}

/// Where the scanners stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// The scanner for movable frames, async and otherwise: async passes over more.
    sources: [FrameId; 2],
    /// One past the block where the scanner for free frames goes on.
    targets: BlockIndex,
    blocks: BlockIndex,
}

impl Cursor {
    pub(super) fn new(frames: u32) -> Self {
        let blocks = BlockIndex::new(frames.div_ceil(BLOCK_FRAMES));
        Self { sources: [FrameId::new(0); 2], targets: blocks, blocks }
    }

    fn reset(&mut self) {
        self.sources = [FrameId::new(0); 2];
        self.targets = self.blocks;
    }
}

/// Puts compaction off after it failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deferral {
    considered: u32,
    shift: u32,
    /// The smallest order that failed.
    order: Option<Order>,
}

impl Deferral {
    const MAX_SHIFT: u32 = 6;

    /// Compaction for `order` went through and did not help.
    pub(super) fn failed(&mut self, order: Order) {
        self.considered = 0;
        self.shift = (self.shift + 1).min(Self::MAX_SHIFT);
        self.order = Some(self.order.map_or(order, |o| o.min(order)));
    }

    /// An allocation of `order` succeeded after compaction.
    pub(super) fn succeeded(&mut self, order: Order) {
        self.considered = 0;
        self.shift = 0;
        if self.order.is_some_and(|o| o <= order) {
            self.order = order.up();
        }
    }

    /// Whether to leave this request out. Counts it.
    pub(super) fn defers(&mut self, order: Order) -> bool {
        if self.order.is_none_or(|o| order < o) {
            return false;
        }
        self.considered += 1;
        if self.considered >= 1 << self.shift {
            self.considered = 1 << self.shift;
            return false;
        }
        true
    }
}

/// Free frames taken as destinations, and the scanner that finds them.
struct FreeScanner {
    held: Vec<FrameId>,
    /// The block above the next one to look at.
    above: BlockIndex,
    /// Never goes below this block; moved up by the other scanner.
    floor: BlockIndex,
    /// Units of this order and above are what compaction is meant to make: not broken up.
    keep: Order,
    ignore_skip: bool,
}

impl FreeScanner {
    fn refill(&mut self, pool: &FramePool) {
        while self.held.is_empty() && self.above.index() > self.floor.index() + 1 {
            let block = BlockIndex::new(self.above.index() - 1);
            self.above = block;
            if !self.ignore_skip && pool.blocks.is_skipped(block, Skip::Target) {
                continue;
            }
            if pool.blocks.type_of(block).takes_movable() {
                self.take_block(pool, block);
            }
            if self.held.is_empty() {
                pool.blocks.set_skip(block, Skip::Target);
            }
        }
    }

    /// Takes all small free units of a block.
    fn take_block(&mut self, pool: &FramePool, block: BlockIndex) {
        let t = pool.tables();
        let mut zone = pool.zone();
        // The type may have changed before the lock was taken.
        if !t.blocks.type_of(block).takes_movable() {
            return;
        }
        let mut at = block.first();
        while at < block.end() && at.index() < t.frames.len() {
            let word = t.frames.meta(at).load();
            match word.kind() {
                Kind::Buddy if word.order() >= self.keep => at = at.offset(word.order().frames()),
                Kind::Buddy => {
                    let order = zone.buddy.remove(t, at);
                    zone.held += order.frames();
                    for i in 0..order.frames() {
                        let frame = at.offset(i);
                        t.frames.meta(frame).store(Word::of(Kind::Held, Order::ZERO));
                        self.held.push(frame);
                    }
                    at = at.offset(order.frames());
                }
                _ => at = at.offset(1),
            }
        }
        drop(zone);
        // Lowest frame last, so that a block fills from its start.
        self.held.reverse();
        add(&pool.events.free_taken, self.held.len() as u64);
    }
}

impl Targets for FreeScanner {
    fn next(&mut self, pool: &FramePool) -> Option<FrameId> {
        if self.held.is_empty() {
            self.refill(pool);
        }
        self.held.pop()
    }

    fn give_back(&mut self, frame: FrameId) {
        self.held.push(frame);
    }
}

/// One run.
pub(super) struct Compaction<'p> {
    pool: &'p FramePool,
    goal: Goal,
    mode: MigrateMode,
    at: FrameId,
    free: FreeScanner,
    mover: Mover,
    whole: bool,
    background: bool,
    budget: u64,
    moved: u64,
    failed: u64,
}

impl<'p> Compaction<'p> {
    pub(super) fn new(pool: &'p FramePool, goal: Goal, mode: MigrateMode) -> Self {
        let cursor = pool.zone().cursor;
        let keep = match goal {
            Goal::Everything => Order::BLOCK,
            Goal::Unit(order, _) => order.max(Order::from_bits(1)),
        };
        let everything = goal == Goal::Everything;
        let start = if everything { FrameId::new(0) } else { cursor.sources[Self::track(mode)] };
        let above = if everything { cursor.blocks } else { cursor.targets };
        let ignore_skip = everything || mode == MigrateMode::Sync;
        Self {
            pool,
            goal,
            mode,
            at: start,
            free: FreeScanner {
                held: Vec::with_capacity(BLOCK_FRAMES as usize),
                above,
                floor: start.block(),
                keep,
                ignore_skip,
            },
            mover: Mover::new(),
            whole: start.index() == 0 && above == cursor.blocks,
            background: false,
            budget: u64::MAX,
            moved: 0,
            failed: 0,
        }
    }

    /// Moves at most `frames` frames, and does not count as somebody's allocation.
    pub(super) fn in_background(mut self, frames: u64) -> Self {
        self.background = true;
        self.budget = frames;
        self
    }

    fn track(mode: MigrateMode) -> usize {
        usize::from(mode != MigrateMode::Async)
    }

    pub(super) fn run(mut self) -> CompactReport {
        if let Goal::Unit(order, mobility) = self.goal {
            let zone = self.pool.zone();
            // Room for the unit and for what is on its way.
            let needed = 2 * order.frames();
            if zone.free_for(Mobility::Movable) < needed {
                return CompactReport::nothing(CompactEnd::TooLittleFree);
            }
            if zone.buddy.can_alloc(order, mobility) {
                return CompactReport::nothing(CompactEnd::Success);
            }
        }
        let end = loop {
            let met = self.collect();
            self.move_batch();
            if let Some(end) = self.finished(met) {
                break end;
            }
        };
        self.mover.finish(self.pool);
        self.leave();
        CompactReport { end, moved: self.moved, failed: self.failed }
    }

    /// Isolates up to a batch of movable frames; `true` once the scanners have met.
    fn collect(&mut self) -> bool {
        let mut scanned = 0;
        let met = loop {
            if self.at.block() >= self.free.above || self.at.index() >= self.pool.frame_count() {
                break true;
            }
            self.free.floor = self.at.block();
            if self.mover.sources.len() >= BATCH {
                break false;
            }
            let block = self.at.block();
            let at_start = self.at == block.first();
            if at_start && !self.is_source(block) {
                self.at = block.end();
                continue;
            }
            let before = self.mover.sources.len();
            scanned += self.collect_in(block);
            if at_start && self.at == block.end() && self.mover.sources.len() == before {
                self.pool.blocks.set_skip(block, Skip::Source);
            }
            // Finish the block before looking whether the goal is reached.
            if self.at == block.end() {
                break false;
            }
        };
        add(&self.pool.events.migrate_scanned, scanned);
        met
    }

    fn is_source(&self, block: BlockIndex) -> bool {
        if !self.free.ignore_skip && self.pool.blocks.is_skipped(block, Skip::Source) {
            return false;
        }
        let of = self.pool.blocks.type_of(block);
        match (self.goal, self.mode) {
            // Emptying a block of another type cannot help this allocation soon.
            (Goal::Unit(_, Mobility::Movable), MigrateMode::Async) if !self.background => {
                of.takes_movable()
            }
            (Goal::Unit(_, mobility), MigrateMode::Async) if !self.background => {
                of == mobility.migrate_type()
            }
            _ => of != MigrateType::Isolate,
        }
    }

    fn collect_in(&mut self, block: BlockIndex) -> u64 {
        let start = self.at;
        let end = block.end().min(FrameId::new(self.pool.frame_count()));
        while self.at < end && self.mover.sources.len() < BATCH {
            // Read without a lock: a wrong order only makes the scan step too far or too short.
            let word = self.pool.meta(self.at).load();
            let step = match word.kind() {
                Kind::Used if word.is_movable() => {
                    self.mover.isolate(self.pool, self.at, self.mode);
                    1
                }
                Kind::Used | Kind::Buddy => word.order().frames(),
                Kind::Tail | Kind::Cached | Kind::Held => 1,
            };
            let left = end.index() - self.at.index();
            self.at = self.at.offset(step.min(left));
        }
        (self.at.index() - start.index()).into()
    }

    fn move_batch(&mut self) {
        if self.mover.sources.is_empty() {
            return;
        }
        let result = self.mover.run(self.pool, self.mode, &mut self.free);
        self.moved += u64::from(result.moved);
        self.failed += u64::from(result.failed);
    }

    fn finished(&self, met: bool) -> Option<CompactEnd> {
        let out_of_room = self.free.held.is_empty() && self.free.above <= self.at.block();
        if met || out_of_room {
            self.pool.zone().cursor.reset();
            self.pool.blocks.clear_skips();
            return Some(if self.whole { CompactEnd::Complete } else { CompactEnd::Partial });
        }
        if self.moved >= self.budget {
            return Some(CompactEnd::Budget);
        }
        let Goal::Unit(order, mobility) = self.goal else { return None };
        let at_block = self.at == self.at.block().first();
        (at_block && self.pool.zone().buddy.can_alloc(order, mobility))
            .then_some(CompactEnd::Success)
    }

    /// Gives destinations back that were not used and remembers where the scanners are.
    fn leave(&mut self) {
        let pool = self.pool;
        let mut zone = pool.zone();
        let mut highest = None;
        for frame in self.free.held.drain(..) {
            highest = highest.max(Some(frame));
            zone.release_held(pool.tables(), frame);
        }
        let above = highest.map_or(self.free.above, |f| f.block().next().max(self.free.above));
        let Zone { cursor, .. } = &mut *zone;
        if self.at.block() < above {
            cursor.targets = above;
            for (track, at) in cursor.sources.iter_mut().enumerate() {
                // What the async scanner has done the other has no need to do again, but it
                // passes over blocks that the other must still look at.
                if track == Self::track(self.mode) {
                    *at = self.at;
                }
            }
        } else {
            cursor.reset();
        }
    }
}

impl FramePool {
    /// Compacts the whole pool, waiting where that ends by itself.
    pub fn compact(&self) -> CompactReport {
        if holds_frame() {
            return CompactReport::nothing(CompactEnd::Deferred);
        }
        self.drain_caches();
        Compaction::new(self, Goal::Everything, MigrateMode::Sync).run()
    }

    /// Compacts for one allocation and tries it: async first, then with more patience.
    pub(super) fn alloc_compacting(&self, order: Order, gfp: super::pool::Gfp) -> Option<FrameId> {
        if order == Order::ZERO || !gfp.may_compact() || holds_frame() {
            return None;
        }
        add(&self.events.compact_stall, 1);
        for mode in [MigrateMode::Async, MigrateMode::SyncLight, MigrateMode::Sync] {
            // The last attempt is never put off: after it comes failure.
            if mode != MigrateMode::Sync && self.zone().deferral.defers(order) {
                add(&self.events.compact_deferred, 1);
                continue;
            }
            let goal = Goal::Unit(order, gfp.mobility());
            let report = Compaction::new(self, goal, mode).run();
            self.drain_caches();
            let mut zone = self.zone();
            if let Some(frame) = zone.alloc(self.tables(), order, gfp, self.marks.min) {
                zone.deferral.succeeded(order);
                add(&self.events.compact_success, 1);
                return Some(frame);
            }
            if report.end == CompactEnd::TooLittleFree {
                break;
            }
            if mode != MigrateMode::Async && report.end == CompactEnd::Complete {
                zone.deferral.failed(order);
            }
        }
        add(&self.events.compact_fail, 1);
        None
    }

    /// Frames isolated for migration at this moment.
    #[must_use]
    pub fn isolated_now(&self) -> u32 {
        u32::try_from(self.isolated.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deferral_doubles_and_resets() {
        let mut d = Deferral::default();
        let order = Order::new(3).unwrap();
        assert!(!d.defers(order), "nothing failed yet");
        for round in 1..10u32 {
            d.failed(order);
            let skipped = (0..1000).take_while(|_| d.defers(order)).count();
            assert_eq!(skipped, (1 << round.min(6)) - 1);
        }
        assert!(!d.defers(Order::ZERO), "smaller orders are not put off");
        d.succeeded(order);
        assert!(!d.defers(order));
    }
}
