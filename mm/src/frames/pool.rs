// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: a pool of frames over a region.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering as MemoryOrdering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::background::Wakeup;
use super::buddy::Tables;
use super::cache::{Cache, Caches};
use super::contig::{CmaArea, ContigFrames};
use super::ids::{BLOCK_FRAMES, FRAME_SIZE, FrameId, FrameRange, Order};
use super::movable::{MovableOps, Owner, Registry};
use super::page::{FrameMeta, FrameTable, Kind, Word};
use super::pageblock::{Blocks, MigrateType, Mobility};
use super::region::Region;
use super::shrink::Shrinkers;
use super::stats::EventCounters;
use super::zone::{Watermarks, Zone};

/// Tells pools apart, so that a token of one is refused by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(u64);

/// How an allocation is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gfp {
    mobility: Mobility,
    compact: bool,
    emergency: bool,
}

impl Gfp {
    /// Frames that stay where they are.
    pub const UNMOVABLE: Self = Self::for_mobility(Mobility::Unmovable);
    /// Frames for an [`Owner`] that can move them; may lie in CMA.
    pub const MOVABLE: Self = Self::for_mobility(Mobility::Movable);
    /// Frames that can be freed on request.
    pub const RECLAIMABLE: Self = Self::for_mobility(Mobility::Reclaimable);

    /// Ordinary allocation of one mobility.
    #[must_use]
    pub const fn for_mobility(mobility: Mobility) -> Self {
        Self { mobility, compact: true, emergency: false }
    }

    /// Rather fail than compact, or ask others for memory.
    #[must_use]
    pub const fn without_compaction(self) -> Self {
        Self { compact: false, ..self }
    }

    /// May use the reserve below the lowest watermark.
    #[must_use]
    pub const fn emergency(self) -> Self {
        Self { emergency: true, ..self }
    }

    /// What the frames are for.
    #[must_use]
    pub const fn mobility(self) -> Mobility {
        self.mobility
    }

    pub(super) const fn may_compact(self) -> bool {
        self.compact
    }

    pub(super) const fn is_emergency(self) -> bool {
        self.emergency
    }
}

/// Why an allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Too little is free.
    #[error("out of memory: {free} frames free, order {order} wanted")]
    NoMemory {
        /// Order asked for.
        order: Order,
        /// Frames free for such an allocation.
        free: u32,
    },
    /// Enough is free, but not in one piece, and it could not be brought together.
    #[error("fragmented: {free} frames free, but no unit of order {order}")]
    Fragmented {
        /// Order asked for.
        order: Order,
        /// Frames free for such an allocation.
        free: u32,
    },
}

/// Why frames were not freed.
#[derive(Debug, thiserror::Error)]
pub enum FreeError {
    /// The frames belong to another pool; here they are again.
    #[error("the frames belong to another pool")]
    Foreign(Frames),
}

/// Why a pool could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A CMA area is empty, outside the region, not of whole blocks, or overlaps another.
    #[error("bad CMA area {0:?}: want whole blocks inside the region, none twice")]
    CmaArea(FrameRange),
    /// 65535 owners have been registered.
    #[error("too many owners")]
    TooManyOwners,
}

/// An allocated unit: 2^order frames, the holder's alone.
///
/// Neither copied nor cloned: to hold it is to own the memory. Give it back with
/// [`FramePool::free`]; a unit that is dropped stays allocated. [`OwnedFrames`] frees itself.
#[derive(Debug)]
#[must_use = "frames that are dropped stay allocated"]
pub struct Frames {
    first: FrameId,
    order: Order,
    pool: PoolId,
}

impl Frames {
    /// First frame.
    #[must_use]
    pub fn first(&self) -> FrameId {
        self.first
    }

    /// Order of the unit.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    pub(crate) fn into_parts(self) -> (FrameId, Order) {
        (self.first, self.order)
    }
}

/// What a pool is made with.
#[derive(Clone, Debug, Default)]
pub struct PoolConfig {
    /// Areas kept for contiguous allocation, each of whole blocks.
    pub cma: Vec<FrameRange>,
    /// Levels of free memory; by default [`Watermarks::for_frames`].
    pub watermarks: Option<Watermarks>,
    /// Threads with caches of their own; by default twice the processors.
    pub threads: Option<usize>,
    /// Turns the per-thread caches off: every frame comes straight from the free lists.
    pub uncached: bool,
}

/// A pool of 4 KiB frames.
///
/// Lock order, outermost first: the turn for contiguous allocation, a frame's lock bit, whatever
/// an owner locks in its callbacks, a thread's cache, the zone.
pub struct FramePool {
    region: Region,
    frames: FrameTable,
    pub(super) blocks: Blocks,
    zone: Mutex<Zone>,
    pub(super) caches: Caches,
    pub(super) owners: Registry,
    pub(super) shrinkers: Shrinkers,
    pub(super) marks: Watermarks,
    pub(super) events: EventCounters,
    /// Allocated frames with the isolated mark.
    pub(super) isolated: AtomicI64,
    pub(super) cma: Vec<CmaArea>,
    pub(super) contig_turn: Mutex<()>,
    pub(super) wakeup: Arc<Wakeup>,
    id: PoolId,
}

impl FramePool {
    /// A pool over all of `region`, everything free.
    ///
    /// # Errors
    /// [`PoolError::CmaArea`].
    pub fn new(region: Region, config: PoolConfig) -> Result<Arc<Self>, PoolError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let count = region.frames();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut caches = Caches::new(count, config.threads.unwrap_or(2 * processors));
        if config.uncached {
            caches.high = 0;
        }
        let pool = Self {
            frames: FrameTable::new(count),
            blocks: Blocks::new(count, MigrateType::Movable),
            zone: Mutex::new(Zone::new(count)),
            caches,
            owners: Registry::default(),
            shrinkers: Shrinkers::default(),
            marks: config.watermarks.unwrap_or(Watermarks::for_frames(count)),
            events: EventCounters::default(),
            isolated: AtomicI64::new(0),
            cma: config.cma.iter().map(|&range| CmaArea::new(range)).collect(),
            contig_turn: Mutex::new(()),
            wakeup: Arc::default(),
            id: PoolId(NEXT.fetch_add(1, MemoryOrdering::Relaxed)),
            region,
        };
        for &range in &config.cma {
            pool.reserve_cma(range)?;
        }
        let all = FrameRange { start: FrameId::new(0), end: FrameId::new(count) };
        pool.zone().buddy.free_range(pool.tables(), all);
        Ok(Arc::new(pool))
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

    /// Registers an owner of movable frames. The pool does not keep `ops` alive: frames whose
    /// owner is gone are not moved any more.
    ///
    /// # Errors
    /// [`PoolError::TooManyOwners`].
    pub fn register(self: &Arc<Self>, ops: Weak<dyn MovableOps>) -> Result<Owner, PoolError> {
        let id = self.owners.register(ops).ok_or(PoolError::TooManyOwners)?;
        Ok(Owner::new(Arc::clone(self), id))
    }

    /// Allocates a unit of `order`. Its contents are whatever was there before.
    ///
    /// # Errors
    /// [`AllocError`], after shrinkers and compaction have been tried if `gfp` allows.
    #[inline]
    pub fn alloc(&self, order: Order, gfp: Gfp) -> Result<Frames, AllocError> {
        if order == Order::ZERO
            && let Some(frame) = self.alloc_cached(gfp.mobility())
        {
            return Ok(self.token(frame, order));
        }
        self.alloc_slow(order, gfp)
    }

    /// Gives a unit back.
    ///
    /// # Errors
    /// [`FreeError::Foreign`].
    #[inline]
    pub fn free(&self, frames: Frames) -> Result<(), FreeError> {
        if frames.pool != self.id {
            return Err(FreeError::Foreign(frames));
        }
        if frames.order == Order::ZERO {
            self.free_single(frames.first);
        } else {
            self.zone().free(self.tables(), frames.first, frames.order);
        }
        Ok(())
    }

    /// The contents of a unit.
    ///
    /// # Panics
    /// If the unit belongs to another pool.
    #[must_use]
    pub fn bytes<'a>(&'a self, frames: &'a Frames) -> &'a [u8] {
        assert_eq!(frames.pool, self.id, "frames of another pool");
        // SAFETY: `frames` is the only handle on this memory and is borrowed for 'a, so nobody
        // gets `bytes_mut` or frees it meanwhile; unmovable frames are touched by nobody else.
        unsafe { self.region.slice(frames.first, frames.order.frames()) }
    }

    /// The contents of a unit, to write.
    ///
    /// # Panics
    /// If the unit belongs to another pool.
    #[must_use]
    pub fn bytes_mut<'a>(&'a self, frames: &'a mut Frames) -> &'a mut [u8] {
        assert_eq!(frames.pool, self.id, "frames of another pool");
        // SAFETY: as for `bytes`, and the only handle is borrowed exclusively.
        unsafe { self.region.slice_mut(frames.first, frames.order.frames()) }
    }

    /// The contents of a contiguous run.
    ///
    /// # Panics
    /// If the run belongs to another pool.
    #[must_use]
    pub fn contig_bytes<'a>(&'a self, run: &'a ContigFrames) -> &'a [u8] {
        assert_eq!(run.pool, self.id, "frames of another pool");
        // SAFETY: `run` is the only handle on this memory and is borrowed for 'a.
        unsafe { self.region.slice(run.range.start, run.range.count()) }
    }

    /// The contents of a contiguous run, to write.
    ///
    /// # Panics
    /// If the run belongs to another pool.
    #[must_use]
    pub fn contig_bytes_mut<'a>(&'a self, run: &'a mut ContigFrames) -> &'a mut [u8] {
        assert_eq!(run.pool, self.id, "frames of another pool");
        // SAFETY: `run` is the only handle on this memory and is borrowed exclusively for 'a.
        unsafe { self.region.slice_mut(run.range.start, run.range.count()) }
    }

    /// The memory under the pool; who may touch it is settled by who holds which frames.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Frames in the pool.
    #[must_use]
    pub fn frame_count(&self) -> u32 {
        self.frames.len()
    }

    /// Which pool this is.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// The watermarks in force.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.marks
    }

    /// Bytes of metadata for each frame.
    #[must_use]
    pub const fn metadata_bytes_per_frame() -> usize {
        FrameTable::bytes_per_frame()
    }

    /// Gives all cached frames back to the free lists.
    pub fn drain_caches(&self) {
        for mut cache in self.caches.all() {
            if cache.cached() == 0 {
                continue;
            }
            let mut zone = self.zone();
            for frame in cache.drain() {
                zone.buddy.free(self.tables(), frame, Order::ZERO);
            }
        }
    }

    #[inline]
    fn alloc_cached(&self, mobility: Mobility) -> Option<FrameId> {
        if self.caches.high == 0 {
            return None;
        }
        let mut cache = self.caches.mine();
        let frame = match cache.list(mobility).pop() {
            Some(frame) => frame,
            None => self.refill(&mut cache, mobility)?,
        };
        cache.used += 1;
        self.meta(frame).store(Word::used(Order::ZERO));
        Some(frame)
    }

    /// Moves a batch of frames from the free lists to a cache and returns one of them.
    #[cold]
    fn refill(&self, cache: &mut Cache, mobility: Mobility) -> Option<FrameId> {
        let mut zone = self.zone();
        let list = cache.list(mobility);
        // The reserve stays on the free lists.
        while list.len() < self.caches.batch
            && let Some(frame) = zone.take_cached(self.tables(), mobility, self.marks.low)
        {
            list.push(frame);
        }
        list.pop()
    }

    /// Frees a single frame, by way of the thread's cache.
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
                return self.zone().buddy.free(self.tables(), frame, Order::ZERO);
            }
        };
        let list = cache.list(mobility);
        if list.len() >= self.caches.high {
            return self.spill(&mut cache, mobility, frame);
        }
        self.meta(frame).store(Word::of(Kind::Cached, Order::ZERO));
        list.push(frame);
    }

    /// Frees a frame and a batch of those cached longest.
    #[cold]
    fn spill(&self, cache: &mut Cache, mobility: Mobility, frame: FrameId) {
        let mut zone = self.zone();
        for old in cache.list(mobility).take_oldest(self.caches.batch) {
            zone.buddy.free(self.tables(), old, Order::ZERO);
        }
        zone.buddy.free(self.tables(), frame, Order::ZERO);
    }

    #[cold]
    fn alloc_slow(&self, order: Order, gfp: Gfp) -> Result<Frames, AllocError> {
        {
            let mut zone = self.zone();
            if let Some(frame) = zone.alloc(self.tables(), order, gfp, self.marks.low) {
                return Ok(self.token(frame, order));
            }
        }
        if gfp.may_compact() {
            self.wakeup.wake(order);
        }
        self.drain_caches();
        {
            let mut zone = self.zone();
            if let Some(frame) = zone.alloc(self.tables(), order, gfp, self.marks.min) {
                return Ok(self.token(frame, order));
            }
        }
        if self.shrink_for(order, gfp)
            && let Some(frame) = self.zone().alloc(self.tables(), order, gfp, self.marks.min)
        {
            return Ok(self.token(frame, order));
        }
        if let Some(frame) = self.alloc_compacting(order, gfp) {
            return Ok(self.token(frame, order));
        }
        let zone = self.zone();
        let free = zone.free_for(gfp.mobility());
        let mark = if gfp.is_emergency() { 0 } else { self.marks.min };
        if zone.is_above(mark, order, gfp.mobility()) {
            Err(AllocError::Fragmented { order, free })
        } else {
            Err(AllocError::NoMemory { order, free })
        }
    }

    pub(crate) fn token(&self, first: FrameId, order: Order) -> Frames {
        Frames { first, order, pool: self.id }
    }

    pub(super) fn owns(&self, frames: &Frames) -> bool {
        frames.pool == self.id
    }

    pub(super) fn zone(&self) -> MutexGuard<'_, Zone> {
        // A panic under this lock is a bug of ours, and the accounting check will show it.
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables(&self) -> Tables<'_> {
        Tables { frames: &self.frames, blocks: &self.blocks }
    }

    #[inline]
    pub(super) fn meta(&self, frame: FrameId) -> &FrameMeta {
        self.frames.meta(frame)
    }

    pub(super) fn get_meta(&self, frame: FrameId) -> Option<&FrameMeta> {
        self.frames.get(frame)
    }

    /// Copies a frame for a migration: both are locked by the core.
    pub(super) fn copy_frame(&self, dst: FrameId, src: FrameId) {
        assert_ne!(dst, src);
        // SAFETY: the destination is locked and was free, so it is the core's alone.
        let to = unsafe { self.region.slice_mut(dst, 1) };
        // SAFETY: the source is locked, and its owner keeps its writers away while `migrate`
        // runs: `Owner::with_frame` waits for the lock, an owner that uses raw pointers has
        // promised it where it made them.
        let from = unsafe { self.region.slice(src, 1) };
        to.copy_from_slice(from);
    }

    /// The contents of a frame that the caller has pinned, for as long as the pin is held.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn locked_bytes(&self, frame: FrameId) -> &mut [u8; FRAME_SIZE] {
        // SAFETY: the frame is locked by the caller (`Owner::with_frame`), which hands the
        // reference to a closure that ends before the lock does; everybody else waits for it.
        let bytes = unsafe { self.region.slice_mut(frame, 1) };
        bytes.try_into().expect("one frame")
    }
}

/// An allocated unit that frees itself.
pub struct OwnedFrames {
    pool: Arc<FramePool>,
    /// Always there until dropped.
    frames: Option<Frames>,
}

impl OwnedFrames {
    /// Allocates a unit.
    ///
    /// # Errors
    /// As [`FramePool::alloc`].
    pub fn new(pool: &Arc<FramePool>, order: Order, gfp: Gfp) -> Result<Self, AllocError> {
        let frames = pool.alloc(order, gfp)?;
        Ok(Self { pool: Arc::clone(pool), frames: Some(frames) })
    }
}

impl std::ops::Deref for OwnedFrames {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frames.as_ref().map_or(&[], |frames| self.pool.bytes(frames))
    }
}

impl std::ops::DerefMut for OwnedFrames {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.frames {
            Some(frames) => self.pool.bytes_mut(frames),
            None => &mut [],
        }
    }
}

impl Drop for OwnedFrames {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            let freed = self.pool.free(frames);
            debug_assert!(freed.is_ok(), "allocated from this pool");
        }
    }
}
