// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: allocate, free and map objects.

use std::sync::{Arc, Weak};

use super::bytes::Span;
use super::class::MAX_SIZE;
use super::compact;
use super::config::ZsConfig;
use super::error::ZsError;
use super::handle::Handle;
use super::heap::Heap;
use super::lists::Class;
use super::mapped::Mapped;
use super::migrate;
use super::stats::{ClassInfo, ZsStats};
use super::validate;
use crate::frames::{
    FramePool, LockedFrame, MigrateError, MigrateMode, MovableOps, Owner, PoolError, Shrink,
    TargetFrame,
};

/// A pool of small objects in movable frames.
///
/// ```
/// use mm::frames::{FramePool, PoolConfig, Region};
/// use mm::zsmalloc::{ZsConfig, ZsPool};
///
/// let frames = FramePool::new(Region::anonymous(4 << 20)?, PoolConfig::default())?;
/// let pool = ZsPool::new(&frames, ZsConfig::default())?;
/// let handle = pool.alloc(100)?;
/// pool.map(handle)?.write(b"one hundred bytes at most");
/// let mut start = [0; 3];
/// pool.map(handle)?.read(&mut start);
/// assert_eq!(&start, b"one");
/// pool.free(handle)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ZsPool {
    heap: Heap,
}

impl ZsPool {
    /// A pool that takes its frames from `frames`.
    ///
    /// # Errors
    /// [`PoolError::TooManyOwners`].
    pub fn new(frames: &Arc<FramePool>, config: ZsConfig) -> Result<Arc<Self>, PoolError> {
        let pool = Arc::new(Self { heap: Heap::new(frames, config) });
        let weak: Weak<Self> = Arc::downgrade(&pool);
        if config.movable {
            pool.heap.supply().set_owner(Owner::register(frames, weak.clone())?);
        }
        frames.register_shrinker(weak);
        Ok(pool)
    }

    /// The pool that the frames come from.
    #[must_use]
    pub fn frame_pool(&self) -> &Arc<FramePool> {
        self.heap.supply().frame_pool()
    }

    /// Whether an object of `size` bytes takes a frame of its own.
    #[must_use]
    pub fn takes_a_frame(&self, size: usize) -> bool {
        size > MAX_SIZE || self.heap.class_for(size).shape().is_huge()
    }

    /// Allocates an object of `size` bytes. Its contents are undefined: they may be an earlier
    /// object's.
    ///
    /// # Errors
    /// [`ZsError::Size`], [`ZsError::Frames`], [`ZsError::Limit`] or [`ZsError::Handles`].
    #[inline]
    pub fn alloc(&self, size: usize) -> Result<Handle, ZsError> {
        self.heap.alloc(size)
    }

    /// Frees an object; waits while it is mapped.
    ///
    /// # Errors
    /// [`ZsError::Foreign`] or [`ZsError::Freed`].
    #[inline]
    pub fn free(&self, handle: Handle) -> Result<(), ZsError> {
        self.heap.free(handle)
    }

    /// Maps an object: its bytes stay where they are until the result is dropped. Waits while
    /// another thread has it mapped; a thread that maps one object twice deadlocks.
    ///
    /// # Errors
    /// [`ZsError::Foreign`] or [`ZsError::Freed`].
    #[inline]
    pub fn map(&self, handle: Handle) -> Result<Mapped<'_>, ZsError> {
        let entry = self.heap.handles().entry(handle)?;
        let place = entry.lock(handle.generation).map_err(|_| ZsError::Freed)?;
        let zspage = self.heap.zspages().at(place.zspage);
        zspage.lock.read();
        let shape = self.heap.class_of(place.zspage).shape();
        let span = Span::new(self.heap.supply().region(), shape, zspage, place.object);
        Ok(Mapped::new(entry, zspage, span))
    }

    /// Moves objects together and frees the frames of zspages that this empties, and of empty
    /// ones kept in reserve. Returns how many frames. Objects that are mapped stay.
    pub fn compact(&self) -> u64 {
        compact::compact(&self.heap, u64::MAX)
    }

    /// Frames that [`compact`](Self::compact) could free, at most.
    #[must_use]
    pub fn compactable(&self) -> u64 {
        compact::compactable(&self.heap)
    }

    /// Contents and memory use of the pool.
    #[must_use]
    pub fn stats(&self) -> ZsStats {
        let supply = self.heap.supply();
        let mut stats = ZsStats {
            frames: supply.used(),
            frames_max: supply.most(),
            metadata_bytes: (self.heap.handles().bytes() + self.heap.zspages().bytes()) as u64,
            frames_compacted: self.heap.compacted(),
            frames_migrated: self.heap.migrated(),
            ..ZsStats::default()
        };
        for class in self.heap.classes() {
            let state = class.lock();
            stats.objects += u64::from(state.objects());
            stats.slot_bytes += u64::from(state.objects()) * class.shape().slot as u64;
            stats.zspages += u64::from(state.zspages());
            stats.metadata_bytes += state.handle_bytes() as u64;
        }
        stats
    }

    /// The classes that have zspages.
    #[must_use]
    pub fn class_info(&self) -> Vec<ClassInfo> {
        let info = |class: &Class| {
            let state = class.lock();
            ClassInfo { class: *class.shape(), groups: state.counts(), objects: state.objects() }
        };
        let all = self.heap.classes().iter().map(info);
        all.filter(|i| i.groups.iter().sum::<u32>() > 0).collect()
    }

    /// Checks lists, counts and entries against each other. Meant for tests, while no other
    /// thread uses the pool.
    ///
    /// # Panics
    /// At the first contradiction.
    pub fn validate(&self) {
        validate::validate(&self.heap);
    }
}

impl MovableOps for ZsPool {
    /// Nothing to do: zspages stay on their lists, and `migrate` looks whether the frame is
    /// still in its chain.
    fn isolate(&self, _frame: &LockedFrame<'_>, _mode: MigrateMode) -> bool {
        true
    }

    fn migrate(
        &self,
        dst: &mut TargetFrame<'_>,
        src: &mut LockedFrame<'_>,
        mode: MigrateMode,
    ) -> Result<(), MigrateError> {
        migrate::migrate(&self.heap, dst, src, mode)
    }

    fn putback(&self, _frame: &LockedFrame<'_>) {}
}

impl Shrink for ZsPool {
    fn shrink(&self, frames: u64) -> u64 {
        compact::compact(&self.heap, frames)
    }
}
