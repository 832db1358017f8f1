// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Size classes: which sizes share a class, and how many frames a zspage of it chains.

use std::ops::Range;

use crate::units::PAGE_BYTES;

/// Largest object, in bytes: a whole frame.
pub const MAX_SIZE: usize = PAGE_BYTES;
/// Smallest slot, in bytes.
pub(super) const MIN_SLOT: usize = 32;
/// Slots differ by this many bytes, so a header never lies across two frames.
const STEP: usize = 16;
/// Bytes before each object: its handle, or the next free object.
pub(super) const HEADER: usize = 4;
/// Most frames in a zspage.
pub(super) const MAX_CHAIN: usize = 8;
/// Most objects in a zspage.
pub(super) const MAX_OBJECTS: usize = MAX_CHAIN * PAGE_BYTES / MIN_SLOT;

const _: () = assert!(MAX_OBJECTS <= u16::MAX as usize);

/// The shape of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeClass {
    /// Bytes of a slot, header included.
    pub slot: usize,
    /// Frames in a zspage.
    pub frames: usize,
    /// Objects in a zspage.
    pub objects: usize,
}

impl SizeClass {
    /// The chain that wastes least at its end; the shortest of those.
    const fn for_slot(slot: usize) -> Self {
        let (mut best, mut frames, mut n) = (usize::MAX, 1, 1);
        while n <= MAX_CHAIN {
            // Compared per frame: n divides the same tail over more memory.
            let waste = (n * PAGE_BYTES % slot) * MAX_CHAIN / n;
            if waste < best {
                best = waste;
                frames = n;
            }
            n += 1;
        }
        Self { slot, frames, objects: frames * PAGE_BYTES / slot }
    }

    /// The numbers of a zspage's objects.
    pub(super) const fn numbers(&self) -> Range<u16> {
        // Fits: there are at most `MAX_OBJECTS`.
        0..self.objects as u16
    }

    /// Whether an object fills a whole frame: such objects have no header.
    #[must_use]
    pub const fn is_huge(&self) -> bool {
        self.frames == 1 && self.objects == 1
    }

    /// Bytes of a slot available to the user.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        if self.is_huge() { PAGE_BYTES } else { self.slot - HEADER }
    }
}

/// All classes, and the class of each slot size.
pub(super) struct Classes {
    classes: Vec<SizeClass>,
    /// Index by `(slot - MIN_SLOT) / STEP`.
    by_slot: Vec<u8>,
}

impl Classes {
    /// Slot sizes with chains of the same frames and objects share the class of the largest:
    /// the smaller slots would leave the difference at the end of the chain anyway.
    pub(super) fn new() -> Self {
        let mut classes: Vec<SizeClass> = Vec::new();
        let count = (PAGE_BYTES - MIN_SLOT) / STEP + 1;
        let mut by_slot = Vec::with_capacity(count);
        for slot in (0..count).rev().map(|i| MIN_SLOT + i * STEP) {
            let class = SizeClass::for_slot(slot);
            let same = |c: &SizeClass| (c.frames, c.objects) == (class.frames, class.objects);
            if !classes.last().is_some_and(same) {
                classes.push(class);
            }
            // At most 255 slot sizes.
            by_slot.push((classes.len() - 1) as u8);
        }
        by_slot.reverse();
        Self { classes, by_slot }
    }

    pub(super) fn all(&self) -> &[SizeClass] {
        &self.classes
    }

    /// The class for objects of `size` bytes, 1 to [`MAX_SIZE`].
    #[inline]
    pub(super) fn index_for(&self, size: usize) -> usize {
        let slot = (size + HEADER).clamp(MIN_SLOT, PAGE_BYTES);
        self.by_slot[(slot - MIN_SLOT).div_ceil(STEP)].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class() {
        let classes = Classes::new();
        for size in 1..=MAX_SIZE {
            let class = classes.all()[classes.index_for(size)];
            assert!(class.capacity() >= size, "{size} in {class:?}");
            assert!(class.objects <= MAX_OBJECTS);
            assert!(class.frames <= MAX_CHAIN);
            let slot = if class.is_huge() { PAGE_BYTES } else { class.slot };
            assert!(class.objects * slot <= class.frames * PAGE_BYTES);
            assert!(class.is_huge() || class.slot.is_multiple_of(STEP));
        }
    }

    #[test]
    fn little_is_left_over() {
        let classes = Classes::new();
        for class in classes.all().iter().filter(|c| !c.is_huge()) {
            let total = class.frames * PAGE_BYTES;
            let waste = total - class.objects * class.slot;
            assert!(waste * 10 < total, "{class:?} wastes {waste}");
        }
    }
}
