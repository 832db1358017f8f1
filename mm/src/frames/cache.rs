// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Per-thread caches of single frames, one list for each mobility.
//!
//! A cache has a lock so that compaction and contiguous allocation can empty it from outside;
//! its own thread nearly always finds that lock free. The lock is also what makes isolation of a
//! block exact: a freeing thread reads the block's type *inside* it, so once a block is marked
//! and every cache has been emptied after that, no frame of the block can enter a cache again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::ids::FrameId;
use super::pageblock::Mobility;
use super::sync::{SpinGuard, SpinLock};

/// Most frames a list can hold.
pub(super) const CAPACITY: usize = 128;

/// Cached frames of one mobility, last in first out.
#[derive(Clone)]
pub(super) struct Stack {
    len: usize,
    items: [u32; CAPACITY],
}

impl Stack {
    const fn new() -> Self {
        Self { len: 0, items: [0; CAPACITY] }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<FrameId> {
        self.len = self.len.checked_sub(1)?;
        Some(FrameId::new(self.items[self.len]))
    }

    /// Adds a frame; the caller keeps the list at or below [`CAPACITY`].
    #[inline]
    pub(super) fn push(&mut self, frame: FrameId) {
        self.items[self.len] = frame.index();
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The numbers of all frames, sorted.
    pub(super) fn sorted(&mut self) -> &[u32] {
        let frames = &mut self.items[..self.len];
        frames.sort_unstable();
        frames
    }

    /// Removes and returns the `count` frames that were cached longest ago.
    pub(super) fn take_oldest(&mut self, count: usize) -> impl Iterator<Item = FrameId> + use<> {
        let count = count.min(self.len);
        let mut taken = [0; CAPACITY];
        taken[..count].copy_from_slice(&self.items[..count]);
        self.items.copy_within(count..self.len, 0);
        self.len -= count;
        taken.into_iter().take(count).map(FrameId::new)
    }
}

/// The lists of one thread.
pub(super) struct Cache {
    lists: [Stack; Mobility::ALL.len()],
    /// Frames allocated through this cache less frames freed through it.
    pub(super) used: i64,
}

impl Cache {
    pub(super) const fn new() -> Self {
        Self { lists: [const { Stack::new() }; Mobility::ALL.len()], used: 0 }
    }

    #[inline]
    pub(super) fn list(&mut self, mobility: Mobility) -> &mut Stack {
        &mut self.lists[mobility as usize]
    }

    pub(super) fn cached(&self) -> usize {
        self.lists.iter().map(Stack::len).sum()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = FrameId> {
        self.lists.iter_mut().flat_map(|list| std::iter::from_fn(move || list.pop()))
    }
}

/// A cache on cache lines of its own.
#[repr(align(128))]
struct CacheSlot(SpinLock<Cache>);

/// The caches of all threads.
pub(super) struct Caches {
    slots: Box<[CacheSlot]>,
    /// Frames a list may hold before the oldest go back; 0 turns caching off.
    high: usize,
    /// Frames moved between a list and the zone at a time.
    batch: usize,
}

impl Caches {
    /// Caches that together never hold more than about an eighth of `frames`.
    pub(super) fn new(frames: u32, threads: usize) -> Self {
        let slots = threads.next_power_of_two().clamp(2, 64);
        let share = frames as usize / (8 * slots * Mobility::ALL.len());
        let high = if share < 8 { 0 } else { share.min(CAPACITY) };
        Self {
            slots: (0..slots).map(|_| CacheSlot(SpinLock::new(Cache::new()))).collect(),
            high,
            batch: (high / 4).max(1),
        }
    }

    /// No caching: every frame comes straight from the free lists.
    pub(super) fn disabled() -> Self {
        Self { high: 0, ..Self::new(0, 1) }
    }

    /// Frames a list may hold before the oldest go back; 0 turns caching off.
    #[inline]
    pub(super) fn high(&self) -> usize {
        self.high
    }

    /// Frames moved between a list and the zone at a time.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// The calling thread's cache.
    #[inline]
    pub(super) fn mine(&self) -> SpinGuard<'_, Cache> {
        // The number of slots is a power of two.
        self.slots[thread_number() & (self.slots.len() - 1)].0.lock()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = SpinGuard<'_, Cache>> {
        self.slots.iter().map(|slot| slot.0.lock())
    }
}

const UNSET: usize = usize::MAX;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
    static LEASE: Lease = Lease::take();
}

/// Numbers of threads that have ended, and the first never used.
static NUMBERS: Mutex<(BTreeSet<usize>, usize)> = Mutex::new((BTreeSet::new(), 0));

/// A small number for as long as the thread lives, so that live threads seldom share a cache.
struct Lease(usize);

impl Lease {
    fn take() -> Self {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reused) = numbers.0.pop_first() {
            return Self(reused);
        }
        numbers.1 += 1;
        Self(numbers.1 - 1)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).0.insert(self.0);
    }
}

/// The thread's number: the fast path is one read of a thread-local without a destructor.
#[inline]
pub(crate) fn thread_number() -> usize {
    let number = NUMBER.get();
    if number == UNSET { new_thread_number() } else { number }
}

#[cold]
fn new_thread_number() -> usize {
    // While thread-locals are being destroyed any number will do; it is only a hint.
    let number = LEASE.try_with(|lease| lease.0).unwrap_or(0);
    NUMBER.set(number);
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_leave_first() {
        let mut stack = Stack::new();
        for i in 0..10 {
            stack.push(FrameId::new(i));
        }
        let oldest: Vec<_> = stack.take_oldest(4).map(FrameId::index).collect();
        assert_eq!(oldest, [0, 1, 2, 3]);
        assert_eq!(stack.pop(), Some(FrameId::new(9)));
        assert_eq!(stack.len(), 5);
        assert_eq!(stack.take_oldest(99).count(), 5);
        assert_eq!(stack.pop(), None);
    }

    #[test]
    fn live_threads_have_numbers_of_their_own() {
        let mine = thread_number();
        let other = std::thread::spawn(thread_number).join().unwrap();
        assert_ne!(mine, other);
    }

    #[test]
    fn small_pools_do_not_cache() {
        assert_eq!(Caches::new(512, 2).high, 8 * usize::from(512 / (8 * 2 * 3) >= 8) + 2);
        assert_eq!(Caches::new(64, 2).high, 0);
        assert_eq!(Caches::new(1 << 20, 2).high, CAPACITY);
    }
}
