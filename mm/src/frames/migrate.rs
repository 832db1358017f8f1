// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Isolating frames and moving them in batches, for compaction and contiguous allocation alike.

use std::sync::atomic::Ordering;

use super::ids::{FrameId, Order};
use super::movable::{LockedFrame, MigrateError, MigrateMode, OpsCache, TargetFrame, call};
use super::page::{Kind, Word};
use super::pool::FramePool;
use super::stats::add;

/// Frames isolated at a time: few enough that an owner never waits long for all of them.
pub(super) const BATCH: usize = 32;
/// Attempts for frames that are busy.
const PASSES: u32 = 10;
/// Attempts in async mode, which does not wait between them.
const ASYNC_PASSES: u32 = 3;

/// Where destinations come from.
pub(super) trait Targets {
    /// A held frame to move one into.
    fn next(&mut self, pool: &FramePool) -> Option<FrameId>;
    /// Takes one back that was not needed.
    fn give_back(&mut self, frame: FrameId);
}

/// What became of a batch.
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
    pub(super) sources: Vec<FrameId>,
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

    /// Tries to isolate a movable frame; if that works it is among `sources`.
    pub(super) fn isolate(&mut self, pool: &FramePool, frame: FrameId, mode: MigrateMode) -> bool {
        let meta = pool.meta(frame);
        let Some(word) = meta.begin_isolate() else { return false };
        let locked = LockedFrame { pool, id: frame, owner: word.owner(), private: word.private() };
        let agreed = match self.ops.get(&pool.owners, word.owner()) {
            Some(ops) => call(|| ops.isolate(&locked, mode)).unwrap_or_else(|| {
                add(&pool.events.ops_panicked, 1);
                false
            }),
            None => false,
        };
        if agreed {
            meta.finish_isolate();
            pool.isolated.fetch_add(1, Ordering::Relaxed);
            add(&pool.events.isolated, 1);
            self.sources.push(frame);
        } else if meta.unlock_put() {
            self.dead.push(frame);
        }
        agreed
    }

    /// Moves all `sources`; what cannot be moved is put back. `sources` is empty afterwards.
    pub(super) fn run(
        &mut self,
        pool: &FramePool,
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
                match self.migrate_one(pool, frame, mode, targets, &mut taken) {
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
            self.put_back(pool, frame);
        }
        // A batch is a few dozen frames.
        #[allow(clippy::cast_possible_truncation)]
        {
            result.failed = failed.len() as u32;
        }
        self.sources = queue;
        pool.isolated.fetch_sub(i64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        self.settle(pool, taken);
        add(&pool.events.moved, result.moved.into());
        add(&pool.events.move_failed, result.failed.into());
        result
    }

    /// Frees what died and books destinations as used, under one hold of the zone lock.
    fn settle(&mut self, pool: &FramePool, taken: u32) {
        if taken == 0 && self.dead.is_empty() {
            return;
        }
        let mut zone = pool.zone();
        zone.held -= taken;
        zone.used += i64::from(taken);
        for frame in self.dead.drain(..) {
            zone.free(pool.tables(), frame, Order::ZERO);
        }
    }

    /// Frees frames that died while none was isolated.
    pub(super) fn finish(&mut self, pool: &FramePool) {
        debug_assert!(self.sources.is_empty());
        self.settle(pool, 0);
    }

    fn migrate_one(
        &mut self,
        pool: &FramePool,
        frame: FrameId,
        mode: MigrateMode,
        targets: &mut dyn Targets,
        taken: &mut u32,
    ) -> Attempt {
        let meta = pool.meta(frame);
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
            self.end(pool, frame);
            add(&pool.events.freed_while_isolated, 1);
            return Attempt::Done;
        }
        let Some(target) = targets.next(pool) else {
            meta.unlock();
            return Attempt::NoTarget;
        };
        let target_meta = pool.meta(target);
        target_meta.store_target();
        let owner = word.owner();
        let mut src = LockedFrame { pool, id: frame, owner, private: word.private() };
        let mut dst = TargetFrame { pool, id: target, owner, adopted: false };
        let outcome = match self.ops.get(&pool.owners, owner) {
            Some(ops) => call(|| ops.migrate(&mut dst, &mut src, mode)).unwrap_or_else(|| {
                add(&pool.events.ops_panicked, 1);
                Err(MigrateError::Busy)
            }),
            None => Err(MigrateError::Unknown),
        };
        let adopted = dst.adopted;
        // With no owner's reference this is the last one, and the frame can serve again.
        let unused = target_meta.unlock_put();
        if unused {
            target_meta.store(Word::of(Kind::Held, Order::ZERO));
            targets.give_back(target);
        } else {
            *taken += 1;
        }
        match outcome {
            Ok(()) => {
                if !adopted || meta.load().is_movable() {
                    add(&pool.events.ops_lied, 1);
                }
                self.end(pool, frame);
                Attempt::Done
            }
            Err(error) => {
                meta.unlock();
                if error == MigrateError::Again { Attempt::Again } else { Attempt::Failed }
            }
        }
    }

    /// Ends the isolation of a locked frame.
    fn end(&mut self, pool: &FramePool, frame: FrameId) {
        if pool.meta(frame).end_isolate() {
            self.dead.push(frame);
        }
    }

    fn put_back(&mut self, pool: &FramePool, frame: FrameId) {
        let meta = pool.meta(frame);
        meta.lock();
        let word = meta.load();
        if word.is_movable() {
            let src = LockedFrame { pool, id: frame, owner: word.owner(), private: word.private() };
            if let Some(ops) = self.ops.get(&pool.owners, word.owner())
                && call(|| ops.putback(&src)).is_none()
            {
                add(&pool.events.ops_panicked, 1);
            }
        }
        self.end(pool, frame);
    }
}
