// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Handles and the entries behind them: one 64-bit word for each object, with its lock bit.
//!
//! ```text
//!  63    55 54        39 38       13 12       2    1      0
//! +--------+------------+-----------+----------+------+------+
//! |   -    | generation | zspage    | object   | LIVE | LOCK |
//! +--------+------------+-----------+----------+------+------+
//! ```
//!
//! The generation counts how often the entry was freed, so that a freed handle differs from the
//! current one.

use super::zspage::ZSPAGE_BITS;
use crate::frames::sync::{AtomicU64, Backoff, Ordering};

const LOCK: u64 = 1;
const LIVE: u64 = 1 << 1;
const OBJECT_SHIFT: u32 = 2;
const OBJECT_MASK: u64 = 0x7ff;
const ZSPAGE_SHIFT: u32 = 13;
const ZSPAGE_MASK: u64 = (1 << ZSPAGE_BITS) - 1;
const GEN_SHIFT: u32 = 39;
const GEN_MASK: u64 = 0xffff;

const _: () = assert!(super::class::MAX_OBJECTS <= OBJECT_MASK as usize + 1);

/// Names an object of a [`ZsPool`](super::ZsPool) until it is freed. After that it is rejected,
/// until its entry has been freed 65,536 times: then it may name another object, but never other
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(super) index: u32,
    pub(super) generation: u16,
    pub(super) pool: u16,
}

impl Handle {
    /// The handle as a number, for compact tables.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation) << 16 | u64::from(self.pool)
    }

    /// The handle that [`to_bits`](Self::to_bits) made the number of. Any number is a handle;
    /// one that was not given out is refused when used.
    #[must_use]
    // Each part is masked by the shift and the cast.
    pub fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 32) as u32, generation: (bits >> 16) as u16, pool: bits as u16 }
    }
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectPlace {
    pub(super) zspage: u32,
    pub(super) object: u16,
}

/// One object's entry.
pub(super) struct HandleEntry(AtomicU64);

/// The entry no longer belongs to the handle.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stale;

impl HandleEntry {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn generation(word: u64) -> u16 {
        // Sixteen bits after the mask.
        (word >> GEN_SHIFT & GEN_MASK) as u16
    }

    fn word(generation: u16, place: ObjectPlace) -> u64 {
        u64::from(generation) << GEN_SHIFT
            | u64::from(place.zspage) << ZSPAGE_SHIFT
            | u64::from(place.object) << OBJECT_SHIFT
            | LIVE
    }

    /// Makes a free entry live; returns its generation. The caller took it off a free list.
    pub(super) fn publish(&self, place: ObjectPlace) -> u16 {
        let generation = Self::generation(self.0.load(Ordering::Relaxed));
        self.0.store(Self::word(generation, place), Ordering::Release);
        generation
    }

    /// Takes the lock bit, waiting until it is free.
    #[inline]
    pub(super) fn lock(&self, generation: u16) -> Result<ObjectPlace, Stale> {
        let mut backoff = Backoff::new();
        loop {
            match self.try_lock(Some(generation))? {
                Some(place) => return Ok(place),
                None => backoff.snooze(),
            }
        }
    }

    /// Takes the lock bit if it is free: `Ok(None)` if not. Without a generation, any is accepted:
    /// the caller knows the object by its header.
    #[inline]
    pub(super) fn try_lock(&self, generation: Option<u16>) -> Result<Option<ObjectPlace>, Stale> {
        let word = self.0.load(Ordering::Relaxed);
        if word & LIVE == 0 || generation.is_some_and(|g| g != Self::generation(word)) {
            return Err(Stale);
        }
        if word & LOCK != 0 {
            return Ok(None);
        }
        match self.0.compare_exchange(word, word | LOCK, Ordering::Acquire, Ordering::Relaxed) {
            // Eleven and twenty-six bits after the masks.
            Ok(_) => Ok(Some(ObjectPlace {
                zspage: (word >> ZSPAGE_SHIFT & ZSPAGE_MASK) as u32,
                object: (word >> OBJECT_SHIFT & OBJECT_MASK) as u16,
            })),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn unlock(&self) {
        // While locked only the holder changes the word.
        let word = self.0.load(Ordering::Relaxed);
        debug_assert!(word & LOCK != 0);
        self.0.store(word & !LOCK, Ordering::Release);
    }

    /// Moves a locked entry's object and unlocks it.
    pub(super) fn relocate(&self, place: ObjectPlace) {
        let generation = Self::generation(self.0.load(Ordering::Relaxed));
        self.0.store(Self::word(generation, place), Ordering::Release);
    }

    /// Frees a locked entry: no handle that exists opens it any more.
    pub(super) fn retire(&self) {
        let generation = Self::generation(self.0.load(Ordering::Relaxed)).wrapping_add(1);
        self.0.store(u64::from(generation) << GEN_SHIFT, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_its_bits() {
        let handle = Handle { index: 0xdead_beef, generation: 0x1234, pool: 0x5678 };
        assert_eq!(Handle::from_bits(handle.to_bits()), handle);
    }

    #[test]
    fn a_freed_entry_refuses_its_old_handle() {
        let entry = HandleEntry::new();
        let place = ObjectPlace { zspage: (1 << ZSPAGE_BITS) - 1, object: 1023 };
        let old = entry.publish(place);
        assert_eq!(entry.lock(old), Ok(place));
        assert_eq!(entry.try_lock(Some(old)), Ok(None));
        entry.retire();
        assert_eq!(entry.lock(old), Err(Stale));
        let new = entry.publish(place);
        assert_ne!(new, old);
        assert_eq!(entry.lock(new), Ok(place));
    }
}
