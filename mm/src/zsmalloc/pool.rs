// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: allocate, free and map objects.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::frame::sync::{SpinGuard, SpinLock};
use crate::frame::{
    AllocError, FRAME_SIZE, FrameId, FramePool, Gfp, MovableOps, Order, Owner, PoolError,
};

use super::bytes::{Header, Headers, Span};
use super::class::{Classes, MAX_CHAIN, MAX_SIZE, SizeClass};
use super::handle::{Entry, Handle, Place, Table, ZSPAGE_BITS};
use super::zspage::{EMPTY, FULL, GROUPS, NO_INDEX, NONE, Zspage, group_of};

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

/// Lists and counts of a class.
pub(super) struct ClassState {
    heads: [u32; GROUPS],
    counts: [u32; GROUPS],
    /// A bit for each group that has a zspage.
    occupied: u16,
    pub(super) objects: u32,
    /// Free entries of the handle table.
    handles: Vec<u32>,
}

impl ClassState {
    fn new() -> Self {
        Self {
            heads: [NONE; GROUPS],
            counts: [0; GROUPS],
            occupied: 0,
            objects: 0,
            handles: Vec::new(),
        }
    }

    pub(super) fn head(&self, group: usize) -> Option<u32> {
        (self.heads[group] != NONE).then_some(self.heads[group])
    }

    pub(super) fn zspages(&self) -> u32 {
        self.counts.iter().sum()
    }
}

/// Entries taken from the table, or left for other classes, at a time.
const HANDLE_BATCH: u32 = 64;

/// A class with its lock.
pub(super) struct ClassSlot {
    pub(super) shape: SizeClass,
    pub(super) state: SpinLock<ClassState>,
}

/// A pool of small objects in movable frames.
pub struct ZsPool {
    pub(super) frames: Arc<FramePool>,
    /// Set once, right after creation; absent in a pool of unmovable frames.
    pub(super) owner: OnceLock<Owner>,
    tag: u16,
    config: ZsConfig,
    classes: Classes,
    pub(super) slots: Vec<ClassSlot>,
    pub(super) entries: Table<Entry>,
    pub(super) zspages: Table<Zspage>,
    free_zspages: Mutex<Vec<u32>>,
    /// Free entries that no class keeps.
    free_handles: Mutex<Vec<u32>>,
    frames_used: AtomicU64,
    frames_max: AtomicU64,
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
        let slots = classes
            .all()
            .iter()
            .map(|&shape| ClassSlot { shape, state: SpinLock::new(ClassState::new()) })
            .collect();
        let most_zspages = (frames.frame_count() as usize + MAX_CHAIN).min(1 << ZSPAGE_BITS);
        // Every frame full of the smallest objects; a header has 31 bits for a handle.
        let most_handles = (frames.frame_count() as usize * 128).clamp(1024, 1 << 31);
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
        if config.movable {
            let weak: Weak<Self> = Arc::downgrade(&pool);
            let ops: Weak<dyn MovableOps> = weak;
            // The cell is empty: the pool was made above.
            let _ = pool.owner.set(frames.register(ops)?);
        }
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
            // The fullest with room, so that the others may become empty and go.
            let open = state.occupied & !(1 << FULL);
            if open != 0
                && let Some(zspage) = state.head(15 - open.leading_zeros() as usize)
            {
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
        state.handles.push(handle.index);
        if state.handles.len() > 4 * HANDLE_BATCH as usize {
            self.leave_handles(&mut state);
        }
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
        Ok(Mapped { entry, zspage, span })
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

    fn headers<'a>(&'a self, slot: &'a ClassSlot) -> Headers<'a> {
        Headers { region: self.frames.region(), class: &slot.shape }
    }

    // Free entries.

    #[inline]
    fn take_handle(&self, state: &mut ClassState) -> Option<u32> {
        state.handles.pop().or_else(|| self.find_handles(state))
    }

    #[cold]
    fn find_handles(&self, state: &mut ClassState) -> Option<u32> {
        {
            let mut shared = self.free_handles.lock().unwrap_or_else(PoisonError::into_inner);
            let from = shared.len().saturating_sub(HANDLE_BATCH as usize);
            state.handles.extend(shared.drain(from..));
        }
        if state.handles.is_empty() {
            // Lowest last, so that it goes first.
            state.handles.extend(self.entries.grow(HANDLE_BATCH)?.rev());
        }
        state.handles.pop()
    }

    #[cold]
    fn leave_handles(&self, state: &mut ClassState) {
        let mut shared = self.free_handles.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(state.handles.drain(..2 * HANDLE_BATCH as usize));
    }

    // Objects.

    #[inline]
    fn take_object(
        &self,
        slot: &ClassSlot,
        state: &mut ClassState,
        number: u32,
        handle: u32,
    ) -> Handle {
        let zspage = self.zspage(number);
        let object = self.pop_free(slot, zspage);
        self.set_header(slot, zspage, object, handle);
        state.objects += 1;
        self.count(slot, state, number, zspage.inuse() + 1);
        let place = Place { zspage: number, object };
        let entry = self.entries.get(handle).expect("an entry that was given out");
        Handle { index: handle, generation: entry.publish(place), pool: self.tag }
    }

    /// Takes a free object off a zspage with room.
    #[inline]
    pub(super) fn pop_free(&self, slot: &ClassSlot, zspage: &Zspage) -> u16 {
        let object = zspage.free();
        if object == NO_INDEX {
            let fresh = zspage.fresh();
            zspage.set_fresh(fresh + 1);
            return fresh;
        }
        zspage.set_free(self.headers(slot).read(zspage, object).next());
        object
    }

    #[inline]
    pub(super) fn set_header(&self, slot: &ClassSlot, zspage: &Zspage, object: u16, handle: u32) {
        if slot.shape.is_huge() {
            zspage.set_huge(handle);
        } else {
            self.headers(slot).write(zspage, object, Header::used(handle));
        }
    }

    /// The handle of an object in use.
    pub(super) fn header_of(&self, slot: &ClassSlot, zspage: &Zspage, object: u16) -> Option<u32> {
        if slot.shape.is_huge() {
            return (zspage.inuse() == 1).then(|| zspage.huge());
        }
        if object >= zspage.fresh() {
            return None;
        }
        self.headers(slot).read(zspage, object).handle()
    }

    /// Puts an object on its zspage's free list.
    #[inline]
    pub(super) fn push_free(&self, slot: &ClassSlot, zspage: &Zspage, object: u16) {
        if slot.shape.is_huge() {
            zspage.set_fresh(0);
            return;
        }
        self.headers(slot).write(zspage, object, Header::free(zspage.free()));
        zspage.set_free(object);
    }

    /// Frees an object; returns the frames of its zspage if that is to go.
    #[inline]
    fn put_object(
        &self,
        slot: &ClassSlot,
        state: &mut ClassState,
        place: Place,
    ) -> Option<Emptied> {
        let zspage = self.zspage(place.zspage);
        self.push_free(slot, zspage, place.object);
        state.objects -= 1;
        let inuse = zspage.inuse() - 1;
        self.count(slot, state, place.zspage, inuse);
        // One empty zspage a class is kept: a program that frees one object and allocates the
        // next should not build a chain each time.
        (inuse == 0 && state.counts[EMPTY] > 1).then(|| self.detach(state, place.zspage))
    }

    /// Sets the number of objects in use and moves the zspage to the group for it.
    #[inline]
    pub(super) fn count(&self, slot: &ClassSlot, state: &mut ClassState, number: u32, inuse: u16) {
        let zspage = self.zspage(number);
        zspage.set_inuse(inuse);
        let (old, group) = (usize::from(zspage.group()), group_of(inuse, slot.shape.objects));
        // One quarter off is good enough: relinking touches two neighbours, which are far away.
        let ends = |group| group == EMPTY || group == FULL;
        if old != group && (ends(old) || ends(group) || old.abs_diff(group) > 1) {
            self.unlink(state, number);
            self.insert(state, number, group);
        }
    }

    // Lists.

    pub(super) fn insert(&self, state: &mut ClassState, number: u32, group: usize) {
        let zspage = self.zspage(number);
        let head = state.heads[group];
        zspage.set_next(head);
        zspage.set_prev(NONE);
        // Six groups.
        #[allow(clippy::cast_possible_truncation)]
        zspage.set_group(group as u16);
        if head != NONE {
            self.zspage(head).set_prev(number);
        }
        state.heads[group] = number;
        state.counts[group] += 1;
        state.occupied |= 1 << group;
    }

    pub(super) fn unlink(&self, state: &mut ClassState, number: u32) {
        let zspage = self.zspage(number);
        let (next, prev, group) = (zspage.next(), zspage.prev(), usize::from(zspage.group()));
        if next != NONE {
            self.zspage(next).set_prev(prev);
        }
        if prev == NONE {
            state.heads[group] = next;
        } else {
            self.zspage(prev).set_next(next);
        }
        state.counts[group] -= 1;
        if state.heads[group] == NONE {
            state.occupied &= !(1 << group);
        }
    }

    // Zspages.

    #[cold]
    fn new_zspage(&self, class: usize, shape: &SizeClass) -> Result<u32, ZsError> {
        let number = self.free_zspages.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = number.or_else(|| self.zspages.grow(1).map(|r| r.start));
        let number = number.ok_or(ZsError::Limit(self.frames.frame_count()))?;
        let mut frames = [FrameId::new(0); MAX_CHAIN];
        for position in 0..shape.frames {
            match self.alloc_frame(number, position) {
                Ok(frame) => frames[position] = frame,
                Err(error) => {
                    let had = frames.into_iter().take(position);
                    had.for_each(|frame| self.free_frame(frame));
                    self.recycle(number);
                    return Err(error);
                }
            }
        }
        // Until now the frames were movable but in no chain, and `migrate` refused them.
        // A class is one of at most 255.
        #[allow(clippy::cast_possible_truncation)]
        self.zspage(number).open(class as u16, &frames[..shape.frames]);
        Ok(number)
    }

    /// Takes a zspage off its list and closes it. The caller frees the frames without the lock.
    pub(super) fn detach(&self, state: &mut ClassState, number: u32) -> Emptied {
        self.unlink(state, number);
        let mut emptied = Emptied { number, frames: [None; MAX_CHAIN] };
        for (to, frame) in emptied.frames.iter_mut().zip(self.zspage(number).close()) {
            *to = Some(frame);
        }
        emptied
    }

    /// Frees the frames of a closed zspage; returns how many.
    pub(super) fn free_frames(&self, emptied: Emptied) -> u64 {
        let frames = emptied.frames.into_iter().flatten();
        let freed = frames.map(|frame| self.free_frame(frame)).count();
        self.recycle(emptied.number);
        freed as u64
    }

    fn recycle(&self, number: u32) {
        self.free_zspages.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    fn alloc_frame(&self, zspage: u32, position: usize) -> Result<FrameId, ZsError> {
        let used = self.frames_used.fetch_add(1, Ordering::Relaxed) + 1;
        let result = match self.config.limit {
            Some(limit) if used > u64::from(limit) => Err(ZsError::Limit(limit)),
            _ => self.alloc_from_pool(zspage, position).map_err(ZsError::from),
        };
        match result {
            Ok(_) => self.frames_max.fetch_max(used, Ordering::Relaxed),
            Err(_) => self.frames_used.fetch_sub(1, Ordering::Relaxed),
        };
        result
    }

    fn alloc_from_pool(&self, zspage: u32, position: usize) -> Result<FrameId, AllocError> {
        match self.owner.get() {
            Some(owner) => owner.alloc(Gfp::MOVABLE, super::migrate::private(zspage, position)),
            None => self.frames.alloc(Order::ZERO, Gfp::UNMOVABLE).map(|f| f.into_parts().0),
        }
    }

    fn free_frame(&self, frame: FrameId) {
        self.frames_used.fetch_sub(1, Ordering::Relaxed);
        let freed = match self.owner.get() {
            Some(owner) => owner.free(frame).is_ok(),
            // The token was taken apart in `alloc_from_pool`, and this is the only way back.
            None => self.frames.free(self.frames.token(frame, Order::ZERO)).is_ok(),
        };
        debug_assert!(freed, "{frame:?} was in a chain of ours");
    }

    /// The lock of a class, waiting or not.
    pub(super) fn lock_class(&self, class: usize, wait: bool) -> Option<SpinGuard<'_, ClassState>> {
        let state = &self.slots.get(class)?.state;
        if wait { Some(state.lock()) } else { state.try_lock() }
    }

    /// Checks lists, counts and entries against each other.
    ///
    /// # Panics
    /// At the first inconsistency. Meant for tests, while nobody else uses the pool.
    pub fn validate(&self) {
        let mut frames = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let state = slot.state.lock();
            let mut objects = 0;
            for group in 0..GROUPS {
                let mut at = state.head(group);
                let mut zspages = 0;
                while let Some(number) = at {
                    let zspage = self.zspage(number);
                    assert_eq!(usize::from(zspage.class()), index, "zspage {number}");
                    let shape = slot.shape;
                    let used = (0..u16::try_from(shape.objects).unwrap_or(0))
                        .filter_map(|object| Some((object, self.header_of(slot, zspage, object)?)));
                    let mut count = 0;
                    for (object, handle) in used {
                        let entry = self.entries.get(handle).expect("an entry");
                        let place = entry.try_lock(None).expect("live").expect("not mapped");
                        entry.unlock();
                        assert_eq!(place, Place { zspage: number, object });
                        count += 1;
                    }
                    assert_eq!(count, zspage.inuse(), "objects in zspage {number}");
                    let want = group_of(count, shape.objects);
                    let ends = [want, group].iter().any(|&g| g == EMPTY || g == FULL);
                    assert!(want.abs_diff(group) <= usize::from(!ends), "group of {number}");
                    objects += u32::from(count);
                    frames += shape.frames as u64;
                    zspages += 1;
                    at = Some(zspage.next()).filter(|&n| n != NONE);
                }
                assert_eq!(zspages, state.counts[group], "zspages in group {group}");
            }
            assert_eq!(objects, state.objects, "objects of {:?}", slot.shape);
        }
        assert_eq!(frames, self.frames_used.load(Ordering::Relaxed), "frames");
    }
}

/// A zspage that was closed, with the frames it had.
pub(super) struct Emptied {
    number: u32,
    frames: [Option<FrameId>; MAX_CHAIN],
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

/// A mapped object: nobody else maps, frees or moves it meanwhile.
pub struct Mapped<'a> {
    entry: &'a Entry,
    zspage: &'a Zspage,
    span: Span,
}

impl Mapped<'_> {
    /// The object's bytes, up to its class's capacity; the second piece is empty unless the
    /// object lies across two frames that are not neighbours.
    #[inline]
    #[must_use]
    pub fn slices(&self) -> (&[u8], &[u8]) {
        // SAFETY: `map` took the handle bit and the zspage's lock, `drop` gives them back.
        unsafe { self.span.slices() }
    }

    /// The object's bytes, to write.
    #[inline]
    pub fn slices_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        // SAFETY: as for `slices`; the handle bit makes this the only mapping of the object.
        unsafe { self.span.slices_mut() }
    }

    /// The first `len` bytes in one piece: in place if they lie in one, else by way of `spare`.
    ///
    /// # Panics
    /// If the object has no `len` bytes.
    #[inline]
    pub fn contiguous<'s>(&'s self, len: usize, spare: &'s mut [u8; FRAME_SIZE]) -> &'s [u8] {
        let (first, second) = self.slices();
        if len <= first.len() {
            return &first[..len];
        }
        let (low, high) = spare.split_at_mut(first.len());
        low.copy_from_slice(first);
        let rest = len - first.len();
        high[..rest].copy_from_slice(&second[..rest]);
        &spare[..len]
    }

    /// Writes `data` at the start of the object.
    ///
    /// # Panics
    /// If it does not fit.
    #[inline]
    pub fn write(&mut self, data: &[u8]) {
        let (first, second) = self.slices_mut();
        let here = data.len().min(first.len());
        first[..here].copy_from_slice(&data[..here]);
        if here < data.len() {
            second[..data.len() - here].copy_from_slice(&data[here..]);
        }
    }

    /// Reads the start of the object.
    ///
    /// # Panics
    /// If the object is shorter than `to`.
    pub fn read(&self, to: &mut [u8]) {
        let (first, second) = self.slices();
        let here = to.len().min(first.len());
        to[..here].copy_from_slice(&first[..here]);
        let rest = to.len() - here;
        to[here..].copy_from_slice(&second[..rest]);
    }
}

impl Drop for Mapped<'_> {
    #[inline]
    fn drop(&mut self) {
        self.zspage.lock.unread();
        self.entry.unlock();
    }
}
