// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Slots by key, each with its own lock, allocated in chunks on first use.

use std::sync::OnceLock;

use super::error::StoreError;
use super::slot::StoreSlot;
use crate::frames::sync::{SpinGuard, SpinLock};

/// Names a page in a store: 0 up to the store's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// Slots allocated at a time.
const CHUNK: usize = 4096;

type SlotChunk = Box<[SpinLock<StoreSlot>]>;

/// The slots of a store.
pub(super) struct SlotTable {
    capacity: u32,
    chunks: Box<[OnceLock<SlotChunk>]>,
}

impl SlotTable {
    /// Empty slots for the keys from 0 up to, not including, `capacity`.
    pub(super) fn new(capacity: u32) -> Self {
        let chunks = (capacity as usize).div_ceil(CHUNK);
        Self { capacity, chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    /// The slot of `key`, locked.
    pub(super) fn slot(&self, key: Key) -> Result<SpinGuard<'_, StoreSlot>, StoreError> {
        if key.0 >= self.capacity {
            return Err(StoreError::OutOfRange { key: key.0, capacity: self.capacity });
        }
        let index = key.0 as usize;
        let make = || (0..CHUNK).map(|_| SpinLock::new(StoreSlot::EMPTY)).collect();
        Ok(self.chunks[index / CHUNK].get_or_init(make)[index % CHUNK].lock())
    }

    /// Bytes of the allocated chunks.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        chunks * CHUNK * size_of::<SpinLock<StoreSlot>>()
    }
}
