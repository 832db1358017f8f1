// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction: two scanners walk towards each other, one up the pool collecting movable frames, one
//! down collecting free frames, and frames found by the first move into frames found by the second.
//!
//! ```text
//!   |##.#.|.#..#|#....|     |..#.#|##.#.|###.#|      # movable   . free
//!    ^ sources ->                     <- targets ^
//! ```
//!
//! When they meet, the low blocks are empty and the high ones full. The next run continues where
//! they stopped. Blocks in which a scanner found nothing are skipped until a full pass is done.
//! After a run that did not help, the next 1, 3, 7, up to 63 requests are served without
//! compaction.

use super::callbacks::holds_frame;
use super::events::add;
use super::free_scan::FreeScanner;
use super::gfp::Gfp;
use super::ids::{FrameBlock, FrameId, Order};
use super::migrate::{BATCH, Mover};
use super::movable::MigrateMode;
use super::page::FrameKind;
use super::pageblock::{MigrateType, Mobility, Skip};
use super::pool_core::PoolCore;

/// Goal of a compaction run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Compact the whole pool.
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
    /// Not tried, because of earlier failures.
    Deferred,
    /// The budget ran out; the next run continues here.
    Budget,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionReport {
    /// How it ended.
    pub end: CompactEnd,
    /// Frames moved.
    pub moved: u64,
    /// Frames that could not be moved.
    pub failed: u64,
}

impl CompactionReport {
    const fn nothing(end: CompactEnd) -> Self {
        Self { end, moved: 0, failed: 0 }
    }
}

/// One run.
pub(super) struct Compaction<'p> {
    core: &'p PoolCore,
    goal: Goal,
    mode: MigrateMode,
    at: FrameId,
    free: FreeScanner,
    /// Also scans blocks in which a scanner recently found nothing.
    ignore_skip: bool,
    mover: Mover,
    whole: bool,
    background: bool,
    budget: u64,
    moved: u64,
    failed: u64,
}

impl<'p> Compaction<'p> {
    pub(super) fn new(core: &'p PoolCore, goal: Goal, mode: MigrateMode) -> Self {
        let cursor = *core.zone().cursor();
        let keep = match goal {
            Goal::Everything => Order::BLOCK,
            Goal::Unit(order, _) => order.max(Order::from_bits(1)),
        };
        let everything = goal == Goal::Everything;
        let start = if everything { FrameId::new(0) } else { cursor.source(mode) };
        let above = if everything { cursor.blocks() } else { cursor.targets() };
        let ignore_skip = everything || mode == MigrateMode::Sync;
        Self {
            core,
            goal,
            mode,
            at: start,
            free: FreeScanner::new(above, start.block(), keep, ignore_skip),
            ignore_skip,
            mover: Mover::new(),
            whole: start.index() == 0 && above == cursor.blocks(),
            background: false,
            budget: u64::MAX,
            moved: 0,
            failed: 0,
        }
    }

    /// Moves at most `frames` frames, and serves no single allocation.
    pub(super) fn in_background(mut self, frames: u64) -> Self {
        self.background = true;
        self.budget = frames;
        self
    }

    pub(super) fn run(mut self) -> CompactionReport {
        if let Goal::Unit(order, mobility) = self.goal {
            let zone = self.core.zone();
            // Room for the unit and for frames being migrated.
            let needed = 2 * order.frames();
            if zone.free_for(Mobility::Movable) < needed {
                return CompactionReport::nothing(CompactEnd::TooLittleFree);
            }
            if zone.buddy().can_alloc(order, mobility) {
                return CompactionReport::nothing(CompactEnd::Success);
            }
        }
        let end = loop {
            let met = self.collect();
            self.move_batch();
            if let Some(end) = self.finished(met) {
                break end;
            }
        };
        self.mover.finish(self.core);
        self.leave();
        CompactionReport { end, moved: self.moved, failed: self.failed }
    }

    /// Isolates up to a batch of movable frames; `true` once the scanners have met.
    fn collect(&mut self) -> bool {
        let mut scanned = 0;
        let met = loop {
            if self.at.block() >= self.free.above() || self.at.index() >= self.core.frame_count() {
                break true;
            }
            self.free.set_floor(self.at.block());
            if self.mover.isolated() >= BATCH {
                break false;
            }
            let block = self.at.block();
            let at_start = self.at == block.first();
            if at_start && !self.is_source(block) {
                self.at = block.end();
                continue;
            }
            let before = self.mover.isolated();
            scanned += self.collect_in(block);
            if at_start && self.at == block.end() && self.mover.isolated() == before {
                self.core.blocks().set_skip(block, Skip::Source);
            }
            // Finish the block before looking whether the goal is reached.
            if self.at == block.end() {
                break false;
            }
        };
        add(&self.core.events().migrate_scanned, scanned);
        met
    }

    fn is_source(&self, block: FrameBlock) -> bool {
        if !self.ignore_skip && self.core.blocks().is_skipped(block, Skip::Source) {
            return false;
        }
        let of = self.core.blocks().type_of(block);
        match (self.goal, self.mode) {
            // Freeing a block of another type does not help this allocation.
            (Goal::Unit(_, Mobility::Movable), MigrateMode::Async) if !self.background => {
                of.takes_movable()
            }
            (Goal::Unit(_, mobility), MigrateMode::Async) if !self.background => {
                of == mobility.migrate_type()
            }
            _ => of != MigrateType::Isolate,
        }
    }

    fn collect_in(&mut self, block: FrameBlock) -> u64 {
        let start = self.at;
        let end = block.end().min(FrameId::new(self.core.frame_count()));
        while self.at < end && self.mover.isolated() < BATCH {
            // Read without a lock: a wrong order only makes the scan step too far or too short.
            let word = self.core.meta(self.at).load();
            let step = match word.kind() {
                FrameKind::Used if word.is_movable() => {
                    self.mover.isolate(self.core, self.at, self.mode);
                    1
                }
                FrameKind::Used | FrameKind::Buddy => word.order().frames(),
                FrameKind::Tail | FrameKind::Cached | FrameKind::Held => 1,
            };
            let left = end.index() - self.at.index();
            self.at = self.at.offset(step.min(left));
        }
        (self.at.index() - start.index()).into()
    }

    fn move_batch(&mut self) {
        if self.mover.isolated() == 0 {
            return;
        }
        let result = self.mover.run(self.core, self.mode, &mut self.free);
        self.moved += u64::from(result.moved);
        self.failed += u64::from(result.failed);
    }

    fn finished(&self, met: bool) -> Option<CompactEnd> {
        let out_of_room = self.free.is_empty() && self.free.above() <= self.at.block();
        if met || out_of_room {
            self.core.zone().cursor().reset();
            self.core.blocks().clear_skips();
            return Some(if self.whole { CompactEnd::Complete } else { CompactEnd::Partial });
        }
        if self.moved >= self.budget {
            return Some(CompactEnd::Budget);
        }
        let Goal::Unit(order, mobility) = self.goal else { return None };
        let at_block = self.at == self.at.block().first();
        (at_block && self.core.zone().buddy().can_alloc(order, mobility))
            .then_some(CompactEnd::Success)
    }

    /// Gives unused destinations back and remembers where the scanners are.
    fn leave(&mut self) {
        let mut zone = self.core.zone();
        let above = self.free.release(self.core, &mut zone);
        if self.at.block() < above {
            zone.cursor().advance(self.mode, self.at, above);
        } else {
            zone.cursor().reset();
        }
    }
}

/// Compacts the whole pool; waits for locks and for owners.
pub(super) fn compact(core: &PoolCore) -> CompactionReport {
    if holds_frame() {
        return CompactionReport::nothing(CompactEnd::Deferred);
    }
    core.drain_caches();
    Compaction::new(core, Goal::Everything, MigrateMode::Sync).run()
}

/// Compacts for one allocation and tries it: async first, then with more patience.
pub(super) fn alloc_compacting(core: &PoolCore, order: Order, gfp: Gfp) -> Option<FrameId> {
    if order == Order::ZERO || !gfp.may_compact() || holds_frame() {
        return None;
    }
    add(&core.events().compact_stall, 1);
    for mode in [MigrateMode::Async, MigrateMode::SyncLight, MigrateMode::Sync] {
        // The last attempt is never deferred: after it the allocation fails.
        if mode != MigrateMode::Sync && core.zone().deferral().defers(order) {
            add(&core.events().compact_deferred, 1);
            continue;
        }
        let goal = Goal::Unit(order, gfp.mobility());
        let report = Compaction::new(core, goal, mode).run();
        core.drain_caches();
        let mut zone = core.zone();
        if let Some(frame) = zone.alloc(core.tables(), order, gfp, core.marks().min) {
            zone.deferral().succeeded(order);
            add(&core.events().compact_success, 1);
            return Some(frame);
        }
        if report.end == CompactEnd::TooLittleFree {
            break;
        }
        if mode != MigrateMode::Async && report.end == CompactEnd::Complete {
            zone.deferral().failed(order);
        }
    }
    add(&core.events().compact_fail, 1);
    None
}
