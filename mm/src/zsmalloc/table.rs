// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table that grows and never moves.

use std::sync::OnceLock;

use crate::frames::sync::{AtomicU32, Ordering};
use crate::units::SaturatingInto;

/// A table that grows by chunks and never moves: entries are found without a lock.
pub(super) struct Table<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
    next: AtomicU32,
    make: fn() -> T,
}

const CHUNK: usize = 1024;

impl<T> Table<T> {
    /// A table of at most about `most` entries.
    pub(super) fn new(most: usize, make: fn() -> T) -> Self {
        let chunks = (0..most.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { chunks, next: AtomicU32::new(0), make }
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.chunks.get(index / CHUNK)?.get().map(|chunk| &chunk[index % CHUNK])
    }

    /// Numbers never given out before, `count` of them, a power of two up to the chunk's size.
    pub(super) fn grow(&self, count: u32) -> Option<std::ops::Range<u32>> {
        let most = (self.chunks.len() * CHUNK).saturating_u32();
        let step = |n: u32| n.checked_add(count).filter(|&end| end <= most);
        let start = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).ok()?;
        for index in [start, start + count - 1] {
            self.chunks[index as usize / CHUNK]
                .get_or_init(|| (0..CHUNK).map(|_| (self.make)()).collect());
        }
        Some(start..start + count)
    }

    /// Numbers handed out so far.
    pub(super) fn len(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// Bytes that the table takes.
    pub(super) fn bytes(&self) -> usize {
        let made = self.chunks.iter().filter(|c| c.get().is_some()).count();
        made * CHUNK * size_of::<T>() + self.chunks.len() * size_of::<OnceLock<Box<[T]>>>()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_to_their_limit() {
        let table = Table::new(2000, || 0u8);
        let mut seen = 0;
        while let Some(range) = table.grow(64) {
            assert!(range.clone().all(|i| table.get(i).is_some()));
            seen += range.len();
        }
        assert_eq!(seen, 2048);
        assert!(table.get(5000).is_none());
    }
}
