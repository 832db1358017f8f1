// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a pool, below all operations: the frames, their block types, the zone behind its
//! lock, and the caches in front of it.
//!
//! Lock order, outermost first: a frame's lock bit, the locks that an owner takes in its callbacks,
//! a thread's cache, the zone.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buddy::Tables;
use super::cache::{Cache, Caches, Stack};
use super::callbacks::Registry;
use super::config::{PoolConfig, PoolError, Watermarks};
use super::events::EventCounters;
use super::gfp::Gfp;
use super::ids::{BLOCK_FRAMES, FrameId, FrameRange, Order};
use super::page::{FrameKind, FrameMeta, Word};
use super::pageblock::{BlockTypes, MigrateType, Mobility};
use super::region::Region;
use super::shrink::Shrinkers;
use super::space::FrameSpace;
use super::wakeup::Wakeup;
use super::zone::Zone;
use crate::units::SaturatingInto;

/// What the pool's operations share.
pub(super) struct PoolCore {
    space: FrameSpace,
    blocks: BlockTypes,
    zone: Mutex<Zone>,
    caches: Caches,
    populate: bool,
    marks: Watermarks,
    owners: Registry,
    shrinkers: Shrinkers,
    events: EventCounters,
    /// Allocated frames with the isolated mark.
    isolated: AtomicI64,
    wakeup: Arc<Wakeup>,
}

impl PoolCore {
    /// Everything free; the blocks of `config.cma` are CMA blocks.
    pub(super) fn new(region: Region, config: &PoolConfig) -> Result<Self, PoolError> {
        let count = region.frames();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let caches = if config.uncached {
            Caches::disabled()
        } else {
            Caches::new(count, config.threads.unwrap_or(2 * processors))
        };
        let core = Self {
            space: FrameSpace::new(region),
            blocks: BlockTypes::new(count, MigrateType::Movable),
            zone: Mutex::new(Zone::new(count)),
            caches,
            populate: config.populate,
            marks: config.watermarks.unwrap_or(Watermarks::for_frames(count)),
            owners: Registry::default(),
            shrinkers: Shrinkers::default(),
            events: EventCounters::default(),
            isolated: AtomicI64::new(0),
            wakeup: Arc::default(),
        };
        for &range in &config.cma {
            core.reserve_cma(range)?;
        }
        let all = FrameRange { start: FrameId::new(0), end: FrameId::new(count) };
        core.zone().add_free(core.tables(), all);
        Ok(core)
    }

    fn reserve_cma(&self, range: FrameRange) -> Result<(), PoolError> {
        let whole = |f: FrameId| f.index().is_multiple_of(BLOCK_FRAMES);
        let inside = range.count() > 0 && range.end.index() <= self.frame_count();
        if !inside || !whole(range.start) || !whole(range.end) {
            return Err(PoolError::CmaArea(range));
        }
        for block in range.blocks() {
            if self.blocks.type_of(block) == MigrateType::Cma {
                return Err(PoolError::CmaArea(range));
            }
            self.blocks.set_type(block, MigrateType::Cma);
        }
        Ok(())
    }

    pub(super) fn space(&self) -> &FrameSpace {
        &self.space
    }

    pub(super) fn blocks(&self) -> &BlockTypes {
        &self.blocks
    }

    pub(super) fn zone(&self) -> MutexGuard<'_, Zone> {
        // A panic under this lock is a bug of ours, and the accounting check will show it.
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables(&self) -> Tables<'_> {
        Tables { frames: self.space.table(), blocks: &self.blocks }
    }

    #[inline]
    pub(super) fn meta(&self, frame: FrameId) -> &FrameMeta {
        self.space.meta(frame)
    }

    pub(super) fn frame_count(&self) -> u32 {
        self.space.table().len()
    }

    pub(super) fn caches(&self) -> &Caches {
        &self.caches
    }

    pub(super) fn marks(&self) -> Watermarks {
        self.marks
    }

    pub(super) fn owners(&self) -> &Registry {
        &self.owners
    }

    pub(super) fn shrinkers(&self) -> &Shrinkers {
        &self.shrinkers
    }

    pub(super) fn events(&self) -> &EventCounters {
        &self.events
    }

    pub(super) fn wakeup(&self) -> &Arc<Wakeup> {
        &self.wakeup
    }

    /// Allocated frames that are currently isolated.
    pub(super) fn isolated(&self) -> i64 {
        self.isolated.load(Ordering::Relaxed)
    }

    /// Counts a frame as isolated.
    pub(super) fn add_isolated(&self) {
        self.isolated.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `frames` frames as no longer isolated.
    pub(super) fn sub_isolated(&self, frames: usize) {
        self.isolated.fetch_sub(frames.saturating_i64(), Ordering::Relaxed);
    }

    /// Allocates a unit from the free lists if that leaves `mark` frames free.
    pub(super) fn take(&self, order: Order, gfp: Gfp, mark: u32) -> Option<FrameId> {
        self.zone().alloc(self.tables(), order, gfp, mark)
    }

    /// Frees a unit of more than one frame.
    pub(super) fn free_unit(&self, frame: FrameId, order: Order) {
        self.zone().free(self.tables(), frame, order);
    }

    /// Allocates a single frame from the thread's cache.
    #[inline]
    pub(super) fn alloc_cached(&self, mobility: Mobility) -> Option<FrameId> {
        if self.caches.high() == 0 {
            return None;
        }
        let mut cache = self.caches.mine();
        let cached = cache.list(mobility).pop();
        let frame = match cached {
            Some(frame) => frame,
            None => self.refill(&mut cache, mobility)?,
        };
        cache.used += 1;
        self.meta(frame).store(Word::used(Order::ZERO));
        if cached.is_none() && self.populate {
            let mut batch = cache.list(mobility).clone();
            drop(cache);
            batch.push(frame);
            self.populate(batch);
        }
        Some(frame)
    }

    /// Makes the memory of a batch resident that a cache has just received: one call costs less
    /// than a fault for each frame. Other threads may own some of the frames by now, or the host
    /// may have no memory: populating changes no contents, and a write does the same later.
    #[cold]
    fn populate(&self, mut batch: Stack) {
        for run in batch.sorted().chunk_by(|a, b| a + 1 == *b) {
            let populated = self.space.region().populate(FrameId::new(run[0]), run.len());
            if let Err(error) = populated {
                return tracing::debug!("frames are populated on first write: {error}");
            }
        }
    }

    /// Moves a batch of frames from the free lists to a cache and returns one of them.
    #[cold]
    fn refill(&self, cache: &mut Cache, mobility: Mobility) -> Option<FrameId> {
        let mut zone = self.zone();
        let list = cache.list(mobility);
        // The reserve stays on the free lists.
        while list.len() < self.caches.batch()
            && let Some(frame) = zone.take_cached(self.tables(), mobility, self.marks.low)
        {
            list.push(frame);
        }
        list.pop()
    }

    /// Frees a single frame to the thread's cache.
    #[inline]
    pub(super) fn free_single(&self, frame: FrameId) {
        let mut cache = self.caches.mine();
        cache.used -= 1;
        // Inside the cache's lock: see cache.rs.
        let mobility = match self.blocks.type_at(frame) {
            MigrateType::Movable | MigrateType::Cma => Mobility::Movable,
            MigrateType::Unmovable => Mobility::Unmovable,
            MigrateType::Reclaimable => Mobility::Reclaimable,
            MigrateType::Isolate => {
                return self.zone().put_cached(self.tables(), frame);
            }
        };
        let list = cache.list(mobility);
        if list.len() >= self.caches.high() {
            return self.spill(&mut cache, mobility, frame);
        }
        self.meta(frame).store(Word::of(FrameKind::Cached, Order::ZERO));
        list.push(frame);
    }

    /// Frees a frame and a batch of those cached longest.
    #[cold]
    fn spill(&self, cache: &mut Cache, mobility: Mobility, frame: FrameId) {
        let mut zone = self.zone();
        for old in cache.list(mobility).take_oldest(self.caches.batch()) {
            zone.put_cached(self.tables(), old);
        }
        zone.put_cached(self.tables(), frame);
    }

    /// Gives all cached frames back to the free lists.
    pub(super) fn drain_caches(&self) {
        for mut cache in self.caches.all() {
            if cache.cached() == 0 {
                continue;
            }
            let mut zone = self.zone();
            for frame in cache.drain() {
                zone.put_cached(self.tables(), frame);
            }
        }
    }
}
