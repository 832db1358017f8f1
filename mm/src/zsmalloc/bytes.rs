// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Raw access to objects in frames.
//!
//! Soundness: a zspage's frames belong to its pool from `open` to `close`. The bytes of a
//! slot are touched only
//! - through [`Span`]s, by the holder of the object's handle bit *and* of the zspage's lock: no
//!   two at once for one object, and none while a frame of the chain is copied and replaced; and
//! - as headers, under the class lock, which migration and compaction hold while they copy.
//!
//! Headers and objects never overlap, and neither do objects.

use std::ptr::NonNull;

use crate::frames::Region;
use crate::units::{PAGE_BYTES, PAGE_SHIFT};

use super::class::{HEADER, SizeClass};
use super::zspage::Zspage;

/// A header: bit 0 set for an object in use, the rest its handle; else the next free object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectHeader(u32);

impl ObjectHeader {
    const USED: u32 = 1;

    pub(super) const fn used(handle: u32) -> Self {
        Self(handle << 1 | Self::USED)
    }

    pub(super) const fn free(next: u16) -> Self {
        Self((next as u32) << 1)
    }

    /// The handle, if the object is in use.
    pub(super) const fn handle(self) -> Option<u32> {
        if self.0 & Self::USED != 0 { Some(self.0 >> 1) } else { None }
    }

    /// The next free object, if this one is free.
    pub(super) const fn next(self) -> u16 {
        // Written by `free` from sixteen bits.
        (self.0 >> 1) as u16
    }
}

/// Reads and writes headers of zspages of one class. Made only under the class lock.
pub(super) struct Headers<'a> {
    pub(super) region: &'a Region,
    pub(super) class: &'a SizeClass,
}

impl Headers<'_> {
    #[inline]
    fn at(&self, zspage: &Zspage, object: u16) -> NonNull<u32> {
        debug_assert!(usize::from(object) < self.class.objects && !self.class.is_huge());
        let offset = usize::from(object) * self.class.slot;
        let frame = zspage.frame(offset >> PAGE_SHIFT);
        let within = offset & (PAGE_BYTES - 1);
        // SAFETY: `ptr` checked the frame; `within` is below a frame's size and a multiple of 16
        // (slots are), so the four bytes lie in the frame and are aligned.
        unsafe { self.region.ptr(frame).add(within) }.cast()
    }

    #[inline]
    pub(super) fn read(&self, zspage: &Zspage, object: u16) -> ObjectHeader {
        // SAFETY: see the module's text; the caller holds the class lock.
        ObjectHeader(unsafe { self.at(zspage, object).read() })
    }

    #[inline]
    pub(super) fn write(&self, zspage: &Zspage, object: u16, header: ObjectHeader) {
        // SAFETY: see the module's text; the caller holds the class lock.
        unsafe { self.at(zspage, object).write(header.0) }
    }
}

/// The bytes of one object, in one piece or in two.
pub(super) struct Span {
    first: (NonNull<u8>, usize),
    second: (NonNull<u8>, usize),
}

impl Span {
    /// The object's bytes; neighbouring frames give one piece. Making a span touches nothing.
    pub(super) fn new(region: &Region, class: &SizeClass, zspage: &Zspage, object: u16) -> Self {
        if class.is_huge() {
            let whole = (region.ptr(zspage.frame(0)), PAGE_BYTES);
            return Self { first: whole, second: (NonNull::dangling(), 0) };
        }
        let offset = usize::from(object) * class.slot + HEADER;
        let (position, within) = (offset >> PAGE_SHIFT, offset & (PAGE_BYTES - 1));
        let frame = zspage.frame(position);
        // SAFETY: `ptr` checked the frame, and `within` is below a frame's size.
        let start = unsafe { region.ptr(frame).add(within) };
        let len = class.capacity();
        let here = len.min(PAGE_BYTES - within);
        let rest = len - here;
        if rest == 0 {
            return Self { first: (start, len), second: (NonNull::dangling(), 0) };
        }
        let after = zspage.frame(position + 1);
        if frame.checked_add(1) == Some(after) {
            let _checked: NonNull<u8> = region.ptr(after);
            return Self { first: (start, len), second: (NonNull::dangling(), 0) };
        }
        Self { first: (start, here), second: (region.ptr(after), rest) }
    }

    /// The object's bytes.
    ///
    /// # Safety
    /// While the result lives the caller holds the object's handle bit and its zspage's lock.
    #[inline]
    pub(super) unsafe fn slices(&self) -> (&[u8], &[u8]) {
        let ((a, a_len), (b, b_len)) = (self.first, self.second);
        // SAFETY: `new` computed pieces inside frames of the region (an empty one dangles, which
        // a slice of length zero may); the caller keeps writers and migration away.
        let first = unsafe { std::slice::from_raw_parts(a.as_ptr(), a_len) };
        // SAFETY: as above.
        (first, unsafe { std::slice::from_raw_parts(b.as_ptr(), b_len) })
    }

    /// The object's bytes, to write.
    ///
    /// # Safety
    /// As [`slices`](Self::slices), and no other thread holds the handle bit.
    #[inline]
    pub(super) unsafe fn slices_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let ((a, a_len), (b, b_len)) = (self.first, self.second);
        // SAFETY: as for `slices`; the two pieces lie in different frames or one is empty.
        let first = unsafe { std::slice::from_raw_parts_mut(a.as_ptr(), a_len) };
        // SAFETY: as above.
        (first, unsafe { std::slice::from_raw_parts_mut(b.as_ptr(), b_len) })
    }

    /// Copies another object of the same class here.
    ///
    /// # Safety
    /// No other thread touches either object: both are held as [`slices`](Self::slices) says, or
    /// this one is free and its class is locked.
    pub(super) unsafe fn copy_from(&mut self, other: &Self) {
        let ((a, a_len), (b, b_len)) = (other.first, other.second);
        let pieces = [(0, a, a_len), (a_len, b, b_len)];
        for (at, from, len) in pieces {
            let split = self.first.1;
            let low = split.saturating_sub(at).min(len);
            if low > 0 {
                // SAFETY: `at < split`, so this lies within our first piece.
                let to = unsafe { self.first.0.add(at) };
                // SAFETY: `low` bytes are left of that piece; different objects do not overlap.
                unsafe { to.copy_from_nonoverlapping(from, low) };
            }
            if low < len {
                // SAFETY: `low < len`, so this lies within the other's piece.
                let from = unsafe { from.add(low) };
                // SAFETY: both objects have one class's length, so what does not fit in our
                // first piece lies within our second.
                let to = unsafe { self.second.0.add(at + low - split) };
                // SAFETY: as above, and different objects do not overlap.
                unsafe { to.copy_from_nonoverlapping(from, len - low) };
            }
        }
    }
}
