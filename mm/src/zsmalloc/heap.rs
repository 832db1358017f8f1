// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a pool, below everything that works on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::chain::{self, Emptied};
use super::class::{Classes, MAX_CHAIN, MAX_SIZE, MIN_SLOT};
use super::config::ZsConfig;
use super::error::ZsError;
use super::handle::{Handle, ObjectPlace};
use super::handles::{Handles, MOST_KEPT};
use super::lists::Class;
use super::objects::Objects;
use super::supply::Supply;
use super::zspage::{EMPTY, ZSPAGE_BITS};
use super::zspages::Zspages;
use crate::frames::FramePool;
use crate::units::PAGE_BYTES;

/// What the pool's operations share.
pub(super) struct Heap {
    supply: Supply,
    handles: Handles,
    zspages: Zspages,
    sizes: Classes,
    classes: Vec<Class>,
    compacted: AtomicU64,
    migrated: AtomicU64,
}

impl Heap {
    pub(super) fn new(frames: &Arc<FramePool>, config: ZsConfig) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let sizes = Classes::new();
        let classes: Vec<_> = sizes.all().iter().map(|&shape| Class::new(shape)).collect();
        let most_zspages = (frames.frame_count() as usize + MAX_CHAIN).min(1 << ZSPAGE_BITS);
        // Enough for every frame full of the smallest objects, plus the free entries of classes; a
        // header has 31 bits for a handle.
        let most_objects = frames.frame_count() as usize * (PAGE_BYTES / MIN_SLOT);
        let most_handles = (most_objects + classes.len() * MOST_KEPT).min(1 << 31);
        Self {
            supply: Supply::new(frames, config),
            handles: Handles::new(NEXT.fetch_add(1, Ordering::Relaxed), most_handles),
            zspages: Zspages::new(most_zspages),
            sizes,
            classes,
            compacted: AtomicU64::new(0),
            migrated: AtomicU64::new(0),
        }
    }

    pub(super) fn supply(&self) -> &Supply {
        &self.supply
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    pub(super) fn zspages(&self) -> &Zspages {
        &self.zspages
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The class for objects of `size` bytes, 1 to [`MAX_SIZE`].
    pub(super) fn class_for(&self, size: usize) -> &Class {
        &self.classes[self.sizes.index_for(size)]
    }

    /// The class of a zspage in use.
    #[inline]
    pub(super) fn class_of(&self, zspage: u32) -> &Class {
        &self.classes[usize::from(self.zspages.at(zspage).class())]
    }

    /// Objects of a class, whose lock the caller holds.
    #[inline]
    pub(super) fn objects<'a>(&'a self, class: &'a Class) -> Objects<'a> {
        Objects::new(self.supply.region(), class.shape())
    }

    /// Frames given back by compaction so far.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted.load(Ordering::Relaxed)
    }

    pub(super) fn add_compacted(&self, frames: u64) {
        self.compacted.fetch_add(frames, Ordering::Relaxed);
    }

    /// Frames moved by the frame pool so far.
    pub(super) fn migrated(&self) -> u64 {
        self.migrated.load(Ordering::Relaxed)
    }

    pub(super) fn add_migrated(&self) {
        self.migrated.fetch_add(1, Ordering::Relaxed);
    }

    /// Allocates an object of `size` bytes.
    #[inline]
    pub(super) fn alloc(&self, size: usize) -> Result<Handle, ZsError> {
        if size == 0 || size > MAX_SIZE {
            return Err(ZsError::Size(size));
        }
        let index = self.sizes.index_for(size);
        let class = &self.classes[index];
        let mut state = class.lock();
        loop {
            if let Some(number) = state.fullest_with_room() {
                let handle = self.handles.take(state.handles()).ok_or(ZsError::Handles)?;
                let zspage = self.zspages.at(number);
                let objects = self.objects(class);
                let object = objects.pop_free(zspage);
                objects.set_handle(zspage, object, handle);
                state.add_object(&self.zspages, class.shape(), number);
                return Ok(self.handles.publish(handle, ObjectPlace { zspage: number, object }));
            }
            // Frames are allocated outside the lock: that may migrate frames of this class.
            drop(state);
            let zspage = chain::make(&self.supply, &self.zspages, index, class.shape())?;
            state = class.lock();
            state.insert(&self.zspages, zspage, EMPTY);
        }
    }

    /// Frees an object; waits while it is mapped.
    #[inline]
    pub(super) fn free(&self, handle: Handle) -> Result<(), ZsError> {
        let entry = self.handles.entry(handle)?;
        let place = entry.lock(handle.generation).map_err(|_| ZsError::Freed)?;
        // Stable: the zspage has this object, and we hold the object.
        let class = self.class_of(place.zspage);
        let mut state = class.lock();
        entry.retire();
        self.handles.put(state.handles(), handle.index);
        self.objects(class).push_free(self.zspages.at(place.zspage), place.object);
        let emptied = state
            .sub_object(&self.zspages, class.shape(), place.zspage)
            .then(|| Emptied::detach(&mut state, &self.zspages, place.zspage));
        drop(state);
        if let Some(emptied) = emptied {
            emptied.free(&self.supply, &self.zspages);
        }
        Ok(())
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        for zspage in self.zspages.open() {
            zspage.close().for_each(|frame| self.supply.free(frame));
        }
    }
}
