// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An object's bytes, while it is mapped.

use super::bytes::Span;
use super::handle::HandleEntry;
use super::zspage::Zspage;

/// A mapped object: no other thread can map, free or move it.
pub struct Mapped<'a> {
    entry: &'a HandleEntry,
    zspage: &'a Zspage,
    span: Span,
}

impl<'a> Mapped<'a> {
    /// The caller has locked `entry` and holds `zspage` for reading; dropping the result gives both
    /// back. `span` is the object's.
    pub(super) fn new(entry: &'a HandleEntry, zspage: &'a Zspage, span: Span) -> Self {
        Self { entry, zspage, span }
    }
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

    /// The first `len` bytes in one piece: in place if they lie in one, else through `spare`.
    ///
    /// # Panics
    /// If the object has no `len` bytes.
    #[inline]
    pub fn contiguous<'s>(&'s self, len: usize, spare: &'s mut [u8]) -> &'s [u8] {
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
