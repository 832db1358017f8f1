// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pool's handles: which entries exist, and which are free.

use std::sync::{Mutex, PoisonError};

use super::error::ZsError;
use super::handle::{Handle, HandleEntry, ObjectPlace};
use super::table::Table;

/// Entries taken from the table, or left for other classes, at a time.
const BATCH: u32 = 64;
/// Maximum number of free entries that a class keeps.
pub(super) const MOST_KEPT: usize = 4 * BATCH as usize;

/// All entries of a pool. A class keeps its own free entries, in the vector that it passes to
/// [`take`](Self::take) and [`put`](Self::put) under its lock.
pub(super) struct Handles {
    /// Which pool they belong to.
    tag: u16,
    entries: Table<HandleEntry>,
    /// Free entries that no class keeps.
    free: Mutex<Vec<u32>>,
}

impl Handles {
    pub(super) fn new(tag: u16, most: usize) -> Self {
        Self { tag, entries: Table::new(most, HandleEntry::new), free: Mutex::default() }
    }

    /// The entry of a handle from outside.
    #[inline]
    pub(super) fn entry(&self, handle: Handle) -> Result<&HandleEntry, ZsError> {
        if handle.pool != self.tag {
            return Err(ZsError::Foreign);
        }
        self.entries.get(handle.index).ok_or(ZsError::Foreign)
    }

    /// The entry with number `index`, as an object's header has it.
    pub(super) fn get(&self, index: u32) -> Option<&HandleEntry> {
        self.entries.get(index)
    }

    /// Makes entry `index`, which was taken, name `place`.
    #[inline]
    pub(super) fn publish(&self, index: u32, place: ObjectPlace) -> Handle {
        let entry = self.entries.get(index).expect("an entry that was given out");
        Handle { index, generation: entry.publish(place), pool: self.tag }
    }

    /// Takes a free entry: from the class, else from the shared ones, else a new one.
    #[inline]
    pub(super) fn take(&self, kept: &mut Vec<u32>) -> Option<u32> {
        kept.pop().or_else(|| self.refill(kept))
    }

    #[cold]
    fn refill(&self, kept: &mut Vec<u32>) -> Option<u32> {
        {
            let mut shared = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let from = shared.len().saturating_sub(BATCH as usize);
            kept.extend(shared.drain(from..));
        }
        if kept.is_empty() {
            // Lowest last, so that it goes first.
            kept.extend(self.entries.grow(BATCH)?.rev());
        }
        kept.pop()
    }

    /// Gives a free entry back to its class.
    #[inline]
    pub(super) fn put(&self, kept: &mut Vec<u32>, index: u32) {
        kept.push(index);
        if kept.len() > MOST_KEPT {
            self.share(kept);
        }
    }

    #[cold]
    fn share(&self, kept: &mut Vec<u32>) {
        let mut shared = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(kept.drain(..2 * BATCH as usize));
    }

    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
    }
}
