// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: allocate, free and map objects.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::frames::{AllocError, FramePool, MovableOps, Owner, PoolError};
use crate::units::PAGE_BYTES;

use super::bytes::Span;
use super::class::{Classes, MAX_CHAIN, MAX_SIZE, MIN_SLOT, SizeClass};
use super::handle::{Entry, Handle, Table, ZSPAGE_BITS};
use super::lists::ClassSlot;
use super::mapped::Mapped;
use super::objects::MOST_KEPT;
use super::zspage::{EMPTY, GROUPS, NO_INDEX, Zspage};

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZsError {
    /// Objects have 1 to 4096 bytes.
    #[error("no object has {0} bytes: want 1 to 4096")]
    Size(usize),
    /// The frame pool has nothing left.
    #[error(transparent)]
    Frames(#[from] AllocError),
    /// The limit set for this pool is reached.
    #[error("the pool's limit of {0} frames is reached")]
    Limit(u32),
    /// As many objects as the pool can name.
    #[error("the pool has no more handles")]
    Handles,
    /// Another pool's handle, or none that was ever given out.
    #[error("not a handle of this pool")]
    Foreign,
    /// The object was freed.
    #[error("the object was freed already")]
    Freed,
}

/// What a pool is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZsConfig {
    /// Frames can be migrated and may lie in CMA. Otherwise they are allocated as unmovable.
    pub movable: bool,
    /// Most frames the pool may have.
    pub limit: Option<u32>,
}

impl Default for ZsConfig {
    fn default() -> Self {
        Self { movable: true, limit: None }
    }
}

/// What a pool holds and takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZsStats {
    /// Objects in use.
    pub objects: u64,
    /// Bytes of their slots.
    pub slot_bytes: u64,
    /// Frames in zspages.
    pub frames: u64,
    /// Most frames at any time.
    pub frames_max: u64,
    /// Zspages.
    pub zspages: u64,
    /// Bytes of tables outside the frames.
    pub metadata_bytes: u64,
    /// Frames given back by compaction so far.
    pub frames_compacted: u64,
    /// Frames moved by the frame pool so far.
    pub frames_migrated: u64,
}

/// One class of a pool, as in zsmalloc's statistics file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassInfo {
    /// Its shape.
    pub class: SizeClass,
    /// Zspages by fullness group: empty, four quarters, full.
    pub groups: [u32; GROUPS],
    /// Objects in use.
    pub objects: u32,
}

/// A pool of small objects in movable frames.
pub struct ZsPool {
    pub(super) frames: Arc<FramePool>,
    /// Set once, right after creation; absent in a pool of unmovable frames.
    pub(super) owner: OnceLock<Owner>,
    pub(super) tag: u16,
    pub(super) config: ZsConfig,
    classes: Classes,
    pub(super) slots: Vec<ClassSlot>,
    pub(super) entries: Table<Entry>,
    pub(super) zspages: Table<Zspage>,
    pub(super) free_zspages: Mutex<Vec<u32>>,
    /// Free entries that no class keeps.
    pub(super) free_handles: Mutex<Vec<u32>>,
    pub(super) frames_used: AtomicU64,
    pub(super) frames_max: AtomicU64,
    pub(super) compacted: AtomicU64,
    pub(super) migrated: AtomicU64,
}

impl ZsPool {
    /// A pool that takes its frames from `frames`.
    ///
    /// # Errors
    /// [`PoolError::TooManyOwners`].
    pub fn new(frames: &Arc<FramePool>, config: ZsConfig) -> Result<Arc<Self>, PoolError> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let classes = Classes::new();
        let slots: Vec<_> = classes.all().iter().map(|&shape| ClassSlot::new(shape)).collect();
        let most_zspages = (frames.frame_count() as usize + MAX_CHAIN).min(1 << ZSPAGE_BITS);
        // Every frame full of the smallest objects, and what classes keep without using it; a
        // header has 31 bits for a handle.
        let most_objects = frames.frame_count() as usize * (PAGE_BYTES / MIN_SLOT);
        let most_handles = (most_objects + slots.len() * MOST_KEPT).min(1 << 31);
        let pool = Arc::new(Self {
            frames: Arc::clone(frames),
            owner: OnceLock::new(),
            tag: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            classes,
            slots,
            entries: Table::new(most_handles, Entry::new),
            zspages: Table::new(most_zspages, Zspage::new),
            free_zspages: Mutex::default(),
            free_handles: Mutex::default(),
            frames_used: AtomicU64::new(0),
            frames_max: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            migrated: AtomicU64::new(0),
        });
        let weak: Weak<Self> = Arc::downgrade(&pool);
        if config.movable {
            let ops: Weak<dyn MovableOps> = weak.clone();
            // The cell is empty: the pool was made above.
            let _ = pool.owner.set(Owner::register(frames, ops)?);
        }
        frames.register_shrinker(weak);
        Ok(pool)
    }

    /// The pool that the frames come from.
    #[must_use]
    pub fn frame_pool(&self) -> &Arc<FramePool> {
        &self.frames
    }

    /// Whether an object of this size takes a frame of its own.
    #[must_use]
    pub fn takes_a_frame(&self, size: usize) -> bool {
        size > MAX_SIZE || self.slots[self.classes.index_for(size)].shape.is_huge()
    }

    /// Allocates an object of `size` bytes. Its contents are whatever was there before.
    ///
    /// # Errors
    /// [`ZsError::Size`], [`ZsError::Frames`] or [`ZsError::Limit`].
    #[inline]
    pub fn alloc(&self, size: usize) -> Result<Handle, ZsError> {
        if size == 0 || size > MAX_SIZE {
            return Err(ZsError::Size(size));
        }
        let index = self.classes.index_for(size);
        let slot = &self.slots[index];
        let mut state = slot.state.lock();
        loop {
            if let Some(zspage) = state.fullest_with_room() {
                let handle = self.take_handle(&mut state).ok_or(ZsError::Handles)?;
                return Ok(self.take_object(slot, &mut state, zspage, handle));
            }
            // Frames are allocated outside the lock: that may migrate frames of this class.
            drop(state);
            let zspage = self.new_zspage(index, &slot.shape)?;
            state = slot.state.lock();
            self.insert(&mut state, zspage, EMPTY);
        }
    }

    /// Frees an object; waits while it is mapped.
    ///
    /// # Errors
    /// [`ZsError::Foreign`] or [`ZsError::Freed`].
    #[inline]
    pub fn free(&self, handle: Handle) -> Result<(), ZsError> {
        let entry = self.entry(handle)?;
        let place = entry.lock(handle.generation).map_err(|_| ZsError::Freed)?;
        let zspage = self.zspage(place.zspage);
        // Stable: the zspage has this object, and we hold the object.
        let slot = &self.slots[usize::from(zspage.class())];
        let mut state = slot.state.lock();
        entry.retire();
        self.put_handle(&mut state, handle.index);
        let emptied = self.put_object(slot, &mut state, place);
        drop(state);
        if let Some(frames) = emptied {
            self.free_frames(frames);
        }
        Ok(())
    }

    /// Maps an object: its bytes stay where they are until the result is dropped. Waits while it
    /// is mapped elsewhere; a thread that maps one object twice waits for ever.
    ///
    /// # Errors
    /// [`ZsError::Foreign`] or [`ZsError::Freed`].
    #[inline]
    pub fn map(&self, handle: Handle) -> Result<Mapped<'_>, ZsError> {
        let entry = self.entry(handle)?;
        let place = entry.lock(handle.generation).map_err(|_| ZsError::Freed)?;
        let zspage = self.zspage(place.zspage);
        zspage.lock.read();
        let class = &self.slots[usize::from(zspage.class())].shape;
        let span = Span::new(self.frames.region(), class, zspage, place.object);
        Ok(Mapped::new(entry, zspage, span))
    }

    /// What the pool holds and takes.
    #[must_use]
    pub fn stats(&self) -> ZsStats {
        let mut stats = ZsStats {
            frames: self.frames_used.load(Ordering::Relaxed),
            frames_max: self.frames_max.load(Ordering::Relaxed),
            metadata_bytes: (self.entries.bytes() + self.zspages.bytes()) as u64,
            frames_compacted: self.compacted.load(Ordering::Relaxed),
            frames_migrated: self.migrated.load(Ordering::Relaxed),
            ..ZsStats::default()
        };
        for slot in &self.slots {
            let state = slot.state.lock();
            stats.objects += u64::from(state.objects);
            stats.slot_bytes += u64::from(state.objects) * slot.shape.slot as u64;
            stats.zspages += u64::from(state.zspages());
            stats.metadata_bytes += (state.handles.capacity() * size_of::<u32>()) as u64;
        }
        stats
    }

    /// The classes that have zspages.
    #[must_use]
    pub fn class_info(&self) -> Vec<ClassInfo> {
        let info = |slot: &ClassSlot| {
            let state = slot.state.lock();
            ClassInfo { class: slot.shape, groups: state.counts, objects: state.objects }
        };
        self.slots.iter().map(info).filter(|i| i.groups.iter().sum::<u32>() > 0).collect()
    }

    #[inline]
    fn entry(&self, handle: Handle) -> Result<&Entry, ZsError> {
        if handle.pool != self.tag {
            return Err(ZsError::Foreign);
        }
        self.entries.get(handle.index).ok_or(ZsError::Foreign)
    }

    /// A zspage by a number that was given out.
    #[inline]
    pub(super) fn zspage(&self, number: u32) -> &Zspage {
        self.zspages.get(number).expect("a zspage that was given out")
    }
}

impl Drop for ZsPool {
    fn drop(&mut self) {
        for number in 0..self.zspages.len() {
            let Some(zspage) = self.zspages.get(number) else { continue };
            if zspage.class() != NO_INDEX {
                zspage.close().for_each(|frame| self.free_frame(frame));
            }
        }
    }
}
