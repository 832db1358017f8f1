// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Isolating frames and moving them in batches, for compaction and contiguous allocation alike.

use super::callbacks::{OpsCache, call};
use super::events::add;
use super::ids::{FrameId, Order};
use super::movable::{LockedFrame, MigrateError, MigrateMode, TargetFrame};
use super::page::{FrameKind, Word};
use super::pool_core::PoolCore;

/// Frames isolated at one time: few enough that an owner never waits long.
pub(super) const BATCH: usize = 32;
/// Attempts for frames that are busy.
const PASSES: u32 = 10;
/// Attempts in async mode, which does not wait between them.
const ASYNC_PASSES: u32 = 3;

/// Where destinations come from.
pub(super) trait Targets {
    /// Takes a free destination frame.
    fn next(&mut self, core: &PoolCore) -> Option<FrameId>;
    /// Returns an unused destination.
    fn give_back(&mut self, frame: FrameId);
}

/// Result of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) moved: u32,
    pub(super) failed: u32,
    pub(super) out_of_targets: bool,
}

/// A mover's working memory, kept between batches.
#[derive(Default)]
pub(super) struct Mover {
    /// Isolated frames, each with a reference of ours.
    sources: Vec<FrameId>,
    ops: OpsCache,
    /// Frames whose last reference we dropped.
    dead: Vec<FrameId>,
    again: Vec<FrameId>,
}

enum Attempt {
    Done,
    Again,
    Failed,
    NoTarget,
}

impl Mover {
    pub(super) fn new() -> Self {
        Self {
            sources: Vec::with_capacity(BATCH),
            ops: OpsCache::default(),
            dead: Vec::with_capacity(BATCH),
            again: Vec::with_capacity(BATCH),
        }
    }

    /// How many frames are isolated and wait to be moved.
    pub(super) fn isolated(&self) -> usize {
        self.sources.len()
    }

    /// Tries to isolate a movable frame, to be moved by the next [`run`](Self::run).
    pub(super) fn isolate(&mut self, core: &PoolCore, frame: FrameId, mode: MigrateMode) -> bool {
        let meta = core.meta(frame);
        let Some(word) = meta.begin_isolate() else { return false };
        let locked = LockedFrame::new(core.space(), frame, word);
        let agreed = match self.ops.get(core.owners(), word.owner()) {
            Some(ops) => call(|| ops.isolate(&locked, mode)).unwrap_or_else(|| {
                add(&core.events().ops_panicked, 1);
                false
            }),
            None => false,
        };
        if agreed {
            meta.finish_isolate();
            core.add_isolated();
            add(&core.events().isolated, 1);
            self.sources.push(frame);
        } else if meta.unlock_put() {
            self.dead.push(frame);
        }
        agreed
    }

    /// Moves all isolated frames; those that cannot be moved are put back.
    pub(super) fn run(
        &mut self,
        core: &PoolCore,
        mode: MigrateMode,
        targets: &mut dyn Targets,
    ) -> Moved {
        let mut result = Moved::default();
        let mut taken = 0;
        let passes = if mode == MigrateMode::Async { ASYNC_PASSES } else { PASSES };
        let mut queue = std::mem::take(&mut self.sources);
        let count = queue.len();
        let mut failed = Vec::new();
        for pass in 1..=passes {
            for frame in queue.drain(..) {
                if result.out_of_targets {
                    failed.push(frame);
                    continue;
                }
                match self.migrate_one(core, frame, mode, targets, &mut taken) {
                    Attempt::Done => result.moved += 1,
                    Attempt::Again if pass < passes => self.again.push(frame),
                    Attempt::Again | Attempt::Failed => failed.push(frame),
                    Attempt::NoTarget => {
                        result.out_of_targets = true;
                        failed.push(frame);
                    }
                }
            }
            std::mem::swap(&mut queue, &mut self.again);
            if queue.is_empty() {
                break;
            }
            if mode != MigrateMode::Async {
                std::thread::yield_now();
            }
        }
        for &frame in &failed {
            self.put_back(core, frame);
        }
        // A batch is a few dozen frames.
        result.failed = failed.len() as u32;
        self.sources = queue;
        core.sub_isolated(count);
        self.settle(core, taken);
        add(&core.events().moved, result.moved.into());
        add(&core.events().move_failed, result.failed.into());
        result
    }

    /// Frees what died and books destinations as used, under one hold of the zone lock.
    fn settle(&mut self, core: &PoolCore, taken: u32) {
        if taken == 0 && self.dead.is_empty() {
            return;
        }
        let mut zone = core.zone();
        zone.use_held(taken);
        for frame in self.dead.drain(..) {
            zone.free(core.tables(), frame, Order::ZERO);
        }
    }

    /// Frees frames that died while none was isolated.
    pub(super) fn finish(&mut self, core: &PoolCore) {
        debug_assert!(self.sources.is_empty());
        self.settle(core, 0);
    }

    fn migrate_one(
        &mut self,
        core: &PoolCore,
        frame: FrameId,
        mode: MigrateMode,
        targets: &mut dyn Targets,
        taken: &mut u32,
    ) -> Attempt {
        let meta = core.meta(frame);
        if mode == MigrateMode::Async {
            if !meta.try_lock() {
                return Attempt::Again;
            }
        } else {
            meta.lock();
        }
        let word = meta.load();
        if !word.is_movable() {
            // Freed by its owner while isolated: ours is the last reference.
            self.end(core, frame);
            add(&core.events().freed_while_isolated, 1);
            return Attempt::Done;
        }
        let Some(target) = targets.next(core) else {
            meta.unlock();
            return Attempt::NoTarget;
        };
        let target_meta = core.meta(target);
        target_meta.store_target();
        let owner = word.owner();
        let mut src = LockedFrame::new(core.space(), frame, word);
        let mut dst = TargetFrame::new(core.space(), target, owner);
        let outcome = match self.ops.get(core.owners(), owner) {
            Some(ops) => call(|| ops.migrate(&mut dst, &mut src, mode)).unwrap_or_else(|| {
                add(&core.events().ops_panicked, 1);
                Err(MigrateError::Busy)
            }),
            None => Err(MigrateError::Unknown),
        };
        let adopted = dst.is_adopted();
        // With no owner's reference this is the last one, and the frame can serve again.
        let unused = target_meta.unlock_put();
        if unused {
            target_meta.store(Word::of(FrameKind::Held, Order::ZERO));
            targets.give_back(target);
        } else {
            *taken += 1;
        }
        match outcome {
            Ok(()) => {
                if !adopted || meta.load().is_movable() {
                    add(&core.events().ops_lied, 1);
                }
                self.end(core, frame);
                Attempt::Done
            }
            Err(error) => {
                meta.unlock();
                if error == MigrateError::Again { Attempt::Again } else { Attempt::Failed }
            }
        }
    }

    /// Ends the isolation of a locked frame.
    fn end(&mut self, core: &PoolCore, frame: FrameId) {
        if core.meta(frame).end_isolate() {
            self.dead.push(frame);
        }
    }

    fn put_back(&mut self, core: &PoolCore, frame: FrameId) {
        let meta = core.meta(frame);
        meta.lock();
        let word = meta.load();
        if word.is_movable() {
            let src = LockedFrame::new(core.space(), frame, word);
            if let Some(ops) = self.ops.get(core.owners(), word.owner())
                && call(|| ops.putback(&src)).is_none()
            {
                add(&core.events().ops_panicked, 1);
            }
        }
        self.end(core, frame);
    }
}
