// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Anonymous memory filled with a pattern that can be checked later: any page that was lost,
//! zeroed or swapped with another shows.

use std::io;
use std::ptr::NonNull;

use guest_agent::pattern;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Words in a page.
const WORDS: usize = PAGE / size_of::<u64>();

/// Fills page `index` of the thing whose seed is `seed`.
pub(crate) fn fill_page(page: &mut [u64], seed: u64, index: usize) {
    for (word, wanted) in page.iter_mut().zip(pattern::words(seed, index)) {
        *word = wanted;
    }
}

/// Whether the page still is what [`fill_page`] made it.
pub(crate) fn page_is_intact(page: &[u64], seed: u64, index: usize) -> bool {
    page.iter().zip(pattern::words(seed, index)).all(|(&word, wanted)| word == wanted)
}

/// One page as bytes, for files and devices.
pub(crate) fn page_bytes(seed: u64, index: usize) -> Vec<u8> {
    pattern::words(seed, index).take(WORDS).flat_map(u64::to_le_bytes).collect()
}

/// A private anonymous mapping.
pub(crate) struct Region {
    start: NonNull<u64>,
    words: usize,
    seed: u64,
}

// SAFETY: the mapping belongs to this value alone; access goes through `&self` and `&mut self`.
unsafe impl Send for Region {}

impl Region {
    /// Maps `bytes` (rounded up to pages) without touching them.
    pub(crate) fn map(bytes: usize, seed: u64, huge: bool) -> io::Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(PAGE);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // SAFETY: the range is the mapping just made; the advice changes no contents.
        // A kernel without transparent huge pages refuses it, which is as well.
        let _ = unsafe { madvise(start, bytes, advice) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, words: bytes / size_of::<u64>(), seed })
    }

    /// Pages in the region.
    pub(crate) fn pages(&self) -> usize {
        self.words / WORDS
    }

    /// The address of page `index`.
    pub(crate) fn page(&self, index: usize) -> Option<NonNull<u64>> {
        self.words().get(index.checked_mul(WORDS)?).map(NonNull::from)
    }

    /// Writes the pattern to every page.
    pub(crate) fn fill(&mut self) {
        let seed = self.seed;
        for (index, page) in self.words_mut().chunks_exact_mut(WORDS).enumerate() {
            fill_page(page, seed, index);
        }
    }

    /// Pages that are not what was written.
    pub(crate) fn damaged(&self) -> usize {
        self.words()
            .chunks_exact(WORDS)
            .enumerate()
            .filter(|(index, page)| !page_is_intact(page, self.seed, *index))
            .count()
    }

    /// Rewrites page `index` after checking it; returns whether it was intact.
    pub(crate) fn rewrite(&mut self, index: usize) -> bool {
        let seed = self.seed;
        let page = &mut self.words_mut()[index * WORDS..][..WORDS];
        let intact = page_is_intact(page, seed, index);
        fill_page(page, seed, index);
        intact
    }

    /// Writes one word of page `index`, as it was; whether it was.
    pub(crate) fn touch(&mut self, index: usize) -> bool {
        let expected = pattern::first_word(self.seed, index);
        let word = &mut self.words_mut()[index * WORDS];
        // SAFETY: a reference is valid and aligned. Volatile, so that the page is really touched.
        let found = unsafe { std::ptr::read_volatile(word) };
        // SAFETY: as above.
        unsafe { std::ptr::write_volatile(word, expected) };
        found == expected
    }

    /// Gives every page for which `drop` says so back to the kernel; how many that were.
    pub(crate) fn punch(&mut self, mut drop: impl FnMut(usize) -> bool) -> io::Result<usize> {
        let mut dropped = 0;
        for index in (0..self.pages()).filter(|&index| drop(index)) {
            let page = self.words_mut()[index * WORDS..].as_mut_ptr();
            // SAFETY: the page lies in our mapping, and `&mut self` says that there is no other reference;
            // it reads as zeroes afterwards.
            unsafe { madvise(page.cast(), PAGE, Advice::LinuxDontNeed) }?;
            dropped += 1;
        }
        Ok(dropped)
    }

    fn words(&self) -> &[u64] {
        // SAFETY: the mapping has `words` words, readable for as long as `self` lives; zeroes are
        // valid words.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, made in `map` with this length, and there is no slice of
        // it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_counted_by_page() {
        let mut region = Region::map(8 * PAGE, 3, false).unwrap();
        region.fill();
        assert_eq!(region.damaged(), 0);
        region.words_mut()[5 * WORDS + 17] ^= 1;
        assert_eq!(region.damaged(), 1);
        assert_eq!(region.punch(|index| index % 4 == 0).unwrap(), 2);
        assert_eq!(region.damaged(), 3);
    }
}
