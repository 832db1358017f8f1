// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A zspage: its chain of frames, its read-write lock, and which of its objects are free.

use crate::frames::FrameId;
use crate::frames::sync::{AtomicU16, AtomicU32, Backoff, Ordering};

use super::class::{MAX_CHAIN, SizeClass};

/// Bits of a zspage's number.
pub(super) const ZSPAGE_BITS: u32 = 26;
/// Bits of a frame's position in its chain.
const POSITION_BITS: u32 = 3;
const _: () = assert!(MAX_CHAIN == 1 << POSITION_BITS && ZSPAGE_BITS + POSITION_BITS <= 32);

/// Where a frame is: its zspage and its position in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameLink {
    pub(super) zspage: u32,
    pub(super) position: usize,
}

impl FrameLink {
    /// The link as the owner's word of the frame.
    pub(super) fn to_private(self) -> u32 {
        // Below eight.
        let position = self.position as u32;
        self.zspage << POSITION_BITS | position
    }

    pub(super) fn from_private(word: u32) -> Self {
        let position = word & ((1 << POSITION_BITS) - 1);
        Self { zspage: word >> POSITION_BITS, position: position as usize }
    }
}

/// No frame, no zspage.
pub(super) const NONE: u32 = u32::MAX;
/// No class, no free object.
pub(super) const NO_INDEX: u16 = u16::MAX;

/// Fullness groups: empty, four by quarters of the objects in use, full. Linux has tenths; each
/// change of group touches two more zspages, and quarters pack as well.
pub(super) const GROUPS: usize = 6;
/// The group of zspages with nothing in them.
pub(super) const EMPTY: usize = 0;
/// The group of zspages with no room.
pub(super) const FULL: usize = GROUPS - 1;

/// The group of a zspage with `inuse` of `objects` objects.
#[inline]
pub(super) fn group_of(inuse: u16, objects: usize) -> usize {
    match usize::from(inuse) {
        0 => EMPTY,
        n if n == objects => FULL,
        n => 1 + n * 4 / objects,
    }
}

/// Many readers or one writer; writers only try. Readers never wait for a waiting writer, so one
/// thread may map several objects of one zspage.
pub(super) struct MapLock(AtomicU32);

const WRITER: u32 = 1 << 31;

impl MapLock {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline]
    pub(super) fn read(&self) {
        let mut backoff = Backoff::new();
        // Counted immediately and undone if there is a writer, which holds the lock only briefly.
        while self.0.fetch_add(1, Ordering::Acquire) & WRITER != 0 {
            self.0.fetch_sub(1, Ordering::Relaxed);
            backoff.snooze();
        }
    }

    #[inline]
    pub(super) fn unread(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn try_write(&self) -> bool {
        self.0.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(super) fn unwrite(&self) {
        // Readers may have counted themselves and not yet undone that.
        self.0.fetch_sub(WRITER, Ordering::Release);
    }
}

/// One zspage. Apart from `frames` and `lock` everything is guarded by the class lock; the fields
/// are atomic because zspages live in a table that is read without it.
#[repr(align(64))]
pub(super) struct Zspage {
    frames: [AtomicU32; MAX_CHAIN],
    pub(super) lock: MapLock,
    next: AtomicU32,
    prev: AtomicU32,
    /// The handle of a huge object, which has no header.
    huge: AtomicU32,
    class: AtomicU16,
    inuse: AtomicU16,
    /// First free object, linked through the objects' headers.
    free: AtomicU16,
    /// Objects from this one on have never been used and are on no list.
    fresh: AtomicU16,
    group: AtomicU16,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Zspage>() == 64, "one cache line");

macro_rules! fields {
    ($($name:ident, $set:ident: $type:ty;)*) => { $(
        #[inline]
        pub(super) fn $name(&self) -> $type {
            self.$name.load(Ordering::Acquire)
        }

        #[inline]
        pub(super) fn $set(&self, value: $type) {
            self.$name.store(value, Ordering::Relaxed);
        }
    )* };
}

impl Zspage {
    pub(super) fn new() -> Self {
        Self {
            frames: [const { NONE }; MAX_CHAIN].map(AtomicU32::new),
            lock: MapLock::new(),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
            huge: AtomicU32::new(NONE),
            class: AtomicU16::new(NO_INDEX),
            inuse: AtomicU16::new(0),
            free: AtomicU16::new(NO_INDEX),
            fresh: AtomicU16::new(0),
            group: AtomicU16::new(0),
        }
    }

    /// Index of the class, or [`NO_INDEX`] while the zspage is not in use.
    #[inline]
    pub(super) fn class(&self) -> u16 {
        self.class.load(Ordering::Acquire)
    }

    fields! {
        inuse, set_inuse: u16;
        free, set_free: u16;
        fresh, set_fresh: u16;
        group, set_group: u16;
        next, set_next: u32;
        prev, set_prev: u32;
        huge, set_huge: u32;
    }

    /// Makes an unused zspage ready, with no object in use.
    pub(super) fn open(&self, class: u16, frames: &[FrameId]) {
        for (slot, frame) in self.frames.iter().zip(frames) {
            slot.store(frame.index(), Ordering::Relaxed);
        }
        self.set_inuse(0);
        self.set_free(NO_INDEX);
        self.set_fresh(0);
        self.set_huge(NONE);
        self.class.store(class, Ordering::Release);
    }

    /// Takes the frames out; from here on migration finds nothing.
    pub(super) fn close(&self) -> impl Iterator<Item = FrameId> + use<> {
        self.class.store(NO_INDEX, Ordering::Relaxed);
        let mut frames = [NONE; MAX_CHAIN];
        for (to, from) in frames.iter_mut().zip(&self.frames) {
            *to = from.swap(NONE, Ordering::Relaxed);
        }
        frames.into_iter().filter(|&f| f != NONE).map(FrameId::new)
    }

    /// The frame at `position` of the chain.
    #[inline]
    pub(super) fn frame(&self, position: usize) -> FrameId {
        FrameId::new(self.frames[position].load(Ordering::Acquire))
    }

    pub(super) fn set_frame(&self, position: usize, frame: FrameId) {
        self.frames[position].store(frame.index(), Ordering::Release);
    }

    /// Whether an object can be taken.
    pub(super) fn has_room(&self, class: &SizeClass) -> bool {
        usize::from(self.inuse()) < class.objects
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn groups_rise_with_use() {
        for objects in 1..=1024u16 {
            let all = usize::from(objects);
            let groups: Vec<_> = (0..=objects).map(|n| group_of(n, all)).collect();
            assert!(groups.is_sorted());
            assert_eq!((groups[0], groups[all]), (EMPTY, FULL));
            assert!(groups[1..all].iter().all(|&g| g != EMPTY && g != FULL));
        }
    }

    #[test]
    fn readers_keep_a_writer_out() {
        let lock = MapLock::new();
        lock.read();
        lock.read();
        assert!(!lock.try_write());
        lock.unread();
        lock.unread();
        assert!(lock.try_write());
        assert!(!lock.try_write());
        lock.unwrite();
        lock.read();
    }
}
