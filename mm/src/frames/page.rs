// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pool's metadata of each frame: one 64-bit word of state and two list links, 16 bytes.
//!
//! ```text
//!  63            32 31        16 15    10 9     6 5    3    2         1        0
//! +----------------+------------+--------+-------+------+----------+--------+---------+
//! | owner's word   | owner      | refs   | order | kind | ISOLATED | LOCKED | MOVABLE |
//! +----------------+------------+--------+-------+------+----------+--------+---------+
//! ```
//!
//! All state that two threads may race for lies in that one word, so each transition is one
//! compare-exchange and can be model-checked (`loom_tests.rs`):
//!
//! ```text
//!            adopt                 begin_isolate               finish_isolate
//!   Used ------------> MOVABLE ------------------> +LOCKED +1 ----------------> +ISOLATED +1
//!    ^                  |    ^                          | refused                 |   |
//!    |                  |    +--------------------------+                         |   | putback,
//!    | disown           | disown (free): MOVABLE and owner cleared, -1            |   | migrated
//!    +------------------+   refs 0 -> free now; else the core's last put frees <--+---+
//! ```
//!
//! A frame that is not `MOVABLE` is never touched by the core: its holder may change the
//! word with plain stores. That keeps atomic read-modify-writes out of the order-0 fast path.

use super::ids::{FrameId, Order};
use super::sync::{AtomicU32, AtomicU64, Backoff, Ordering};

/// End of a list.
pub(super) const NONE: u32 = u32::MAX;

const MOVABLE: u64 = 1 << 0;
const LOCKED: u64 = 1 << 1;
const ISOLATED: u64 = 1 << 2;
const KIND_SHIFT: u32 = 3;
const KIND_MASK: u64 = 0b111 << KIND_SHIFT;
const ORDER_SHIFT: u32 = 6;
const ORDER_MASK: u64 = 0b1111 << ORDER_SHIFT;
const REF_SHIFT: u32 = 10;
const REF_ONE: u64 = 1 << REF_SHIFT;
const REF_MASK: u64 = 0b11_1111 << REF_SHIFT;
const OWNER_SHIFT: u32 = 16;
const OWNER_MASK: u64 = 0xffff << OWNER_SHIFT;
const PRIVATE_SHIFT: u32 = 32;
const PRIVATE_MASK: u64 = 0xffff_ffff << PRIVATE_SHIFT;

/// The state of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    /// Inside a larger unit, whose head holds the state.
    Tail = 0,
    /// Head of a free unit on a buddy list.
    Buddy = 1,
    /// Free, in a thread's cache.
    Cached = 2,
    /// Head of an allocated unit.
    Used = 3,
    /// Taken off the free lists by compaction, not yet a destination.
    Held = 4,
}

/// Which owner a movable frame has; given out by the pool's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(pub(super) u16);

/// A snapshot of a frame's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) const fn used(order: Order) -> Self {
        Self::of(FrameKind::Used, order).plus_ref()
    }

    pub(super) const fn of(kind: FrameKind, order: Order) -> Self {
        Self((kind as u64) << KIND_SHIFT | (order.get() as u64) << ORDER_SHIFT)
    }

    const fn plus_ref(self) -> Self {
        Self(self.0 + REF_ONE)
    }

    pub(super) fn kind(self) -> FrameKind {
        match (self.0 & KIND_MASK) >> KIND_SHIFT {
            1 => FrameKind::Buddy,
            2 => FrameKind::Cached,
            3 => FrameKind::Used,
            4 => FrameKind::Held,
            _ => FrameKind::Tail,
        }
    }

    pub(super) fn order(self) -> Order {
        // Four bits after the mask.
        Order::from_bits(((self.0 & ORDER_MASK) >> ORDER_SHIFT) as u8)
    }

    pub(super) const fn refs(self) -> u64 {
        (self.0 & REF_MASK) >> REF_SHIFT
    }

    pub(super) const fn is_movable(self) -> bool {
        self.0 & MOVABLE != 0
    }

    pub(super) const fn is_isolated(self) -> bool {
        self.0 & ISOLATED != 0
    }

    pub(super) const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    pub(super) fn owner(self) -> OwnerId {
        // Sixteen bits after the mask.
        OwnerId(((self.0 & OWNER_MASK) >> OWNER_SHIFT) as u16)
    }

    pub(super) const fn private(self) -> u32 {
        (self.0 >> PRIVATE_SHIFT) as u32
    }

    fn is_movable_of(self, owner: OwnerId) -> bool {
        self.is_movable() && self.owner() == owner
    }

    fn disowned(self) -> Self {
        Self((self.0 & !(MOVABLE | OWNER_MASK | PRIVATE_MASK)) - REF_ONE)
    }

    fn owned_by(self, owner: OwnerId, private: u32) -> Self {
        let clear = self.0 & !(OWNER_MASK | PRIVATE_MASK);
        Self(
            clear
                | MOVABLE
                | u64::from(owner.0) << OWNER_SHIFT
                | u64::from(private) << PRIVATE_SHIFT,
        )
    }
}

/// Why the frame could not be locked for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinError {
    /// Not movable, or another owner's.
    NotOwned,
    /// Locked by another thread.
    Locked,
}

/// Metadata of one frame.
pub(super) struct FrameMeta {
    word: AtomicU64,
    next: AtomicU32,
    prev: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<FrameMeta>() <= 32);

impl FrameMeta {
    pub(super) fn new() -> Self {
        Self {
            word: AtomicU64::new(Word::of(FrameKind::Tail, Order::ZERO).0),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
        }
    }

    #[inline]
    pub(super) fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Overwrites the word. Only for the sole holder of the frame: the zone for free frames, a
    /// cache for cached ones, the holder of an allocated frame that is not movable.
    #[inline]
    pub(super) fn store(&self, word: Word) {
        self.word.store(word.0, Ordering::Release);
    }

    pub(super) fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn prev(&self) -> u32 {
        self.prev.load(Ordering::Relaxed)
    }

    pub(super) fn set_next(&self, next: u32) {
        self.next.store(next, Ordering::Relaxed);
    }

    pub(super) fn set_prev(&self, prev: u32) {
        self.prev.store(prev, Ordering::Relaxed);
    }

    /// Changes the word by `change` until that succeeds or `change` declines. Returns the word
    /// before the change.
    fn update(&self, change: impl Fn(Word) -> Option<Word>) -> Option<Word> {
        let mut old = self.word.load(Ordering::Acquire);
        loop {
            let new = change(Word(old))?;
            match self.word.compare_exchange_weak(old, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Word(old)),
                Err(seen) => old = seen,
            }
        }
    }

    /// Marks an allocated frame movable; its one reference becomes the owner's.
    pub(super) fn adopt(&self, owner: OwnerId, private: u32) {
        let word = self.load();
        debug_assert!(word.kind() == FrameKind::Used && !word.is_movable());
        self.store(word.owned_by(owner, private));
    }

    /// Marks a migration destination movable, with one more reference for the owner. The core
    /// holds the frame locked, so no other thread can see it as movable and act on it.
    pub(super) fn adopt_locked(&self, owner: OwnerId, private: u32) {
        let done = self.update(|w| {
            (w.is_locked() && !w.is_movable()).then(|| w.plus_ref().owned_by(owner, private))
        });
        debug_assert!(done.is_some(), "a destination is locked and not yet movable");
    }

    /// The owner gives the frame up: clears the movable mark and the owner's reference, if the frame is
    /// `owner`'s. Returns whether that was the last reference.
    pub(super) fn disown(&self, owner: OwnerId) -> Option<bool> {
        let old = self.update(|w| w.is_movable_of(owner).then(|| w.disowned()))?;
        Some(old.refs() == 1)
    }

    /// The owner takes the movable mark back and keeps the frame. Fails while there are other
    /// references.
    pub(super) fn reclaim(&self, owner: OwnerId) -> bool {
        self.update(|w| {
            (w.is_movable_of(owner) && w.refs() == 1 && !w.is_locked())
                .then(|| w.disowned().plus_ref())
        })
        .is_some()
    }

    /// Changes the owner's word, if the frame is `owner`'s.
    pub(super) fn set_private(&self, owner: OwnerId, private: u32) -> bool {
        self.update(|w| w.is_movable_of(owner).then(|| w.owned_by(owner, private))).is_some()
    }

    /// First step of isolation: locks a movable frame that is neither locked nor isolated and
    /// takes a reference on it. Returns the resulting word.
    pub(super) fn begin_isolate(&self) -> Option<Word> {
        self.update(|w| {
            (w.is_movable() && !w.is_locked() && !w.is_isolated() && w.refs() > 0)
                .then(|| Word(w.plus_ref().0 | LOCKED))
        })
    }

    /// Second step, after the owner agreed: sets `ISOLATED` and unlocks; the reference stays.
    pub(super) fn finish_isolate(&self) {
        let done = self.update(|w| Some(Word((w.0 | ISOLATED) & !LOCKED)));
        debug_assert!(done.is_some_and(|w| w.is_locked() && !w.is_isolated()));
    }

    /// Locks and takes a reference for `owner`'s own use of the contents.
    pub(super) fn try_pin(&self, owner: OwnerId) -> Result<(), PinError> {
        let old = self.update(|w| {
            (w.is_movable_of(owner) && !w.is_locked()).then(|| Word(w.plus_ref().0 | LOCKED))
        });
        if old.is_some() {
            return Ok(());
        }
        // The word that made the update decline may have changed; check again.
        if self.load().is_movable_of(owner) {
            Err(PinError::Locked)
        } else {
            Err(PinError::NotOwned)
        }
    }

    /// Unlocks and drops the reference taken with the lock. Returns whether it was the last.
    #[must_use = "the last reference frees the frame"]
    pub(super) fn unlock_put(&self) -> bool {
        let old = self.update(|w| Some(Word((w.0 & !LOCKED) - REF_ONE)));
        old.is_some_and(|w| w.refs() == 1)
    }

    /// Locks a frame on which the caller has a reference.
    pub(super) fn try_lock(&self) -> bool {
        self.update(|w| (!w.is_locked()).then_some(Word(w.0 | LOCKED))).is_some()
    }

    /// [`try_lock`](Self::try_lock), waiting until it is free.
    pub(super) fn lock(&self) {
        let mut backoff = Backoff::new();
        while !self.try_lock() {
            backoff.snooze();
        }
    }

    /// Unlocks and keeps the reference.
    pub(super) fn unlock(&self) {
        let done = self.update(|w| Some(Word(w.0 & !LOCKED)));
        debug_assert!(done.is_some_and(Word::is_locked));
    }

    /// Ends an isolation: clears `ISOLATED`, unlocks and drops the core's reference. Returns
    /// whether it was the last.
    #[must_use = "the last reference frees the frame"]
    pub(super) fn end_isolate(&self) -> bool {
        let old = self.update(|w| Some(Word((w.0 & !(LOCKED | ISOLATED)) - REF_ONE)));
        debug_assert!(old.is_some_and(|w| w.is_isolated() && w.is_locked()));
        old.is_some_and(|w| w.refs() == 1)
    }

    /// Makes a held frame a locked migration destination with the core's one reference.
    pub(super) fn store_target(&self) {
        self.store(Word(Word::used(Order::ZERO).0 | LOCKED));
    }
}

/// The metadata of all frames of a pool.
pub(super) struct FrameTable(Box<[FrameMeta]>);

impl FrameTable {
    pub(super) fn new(frames: u32) -> Self {
        Self((0..frames).map(|_| FrameMeta::new()).collect())
    }

    /// Number of frames.
    pub(super) fn len(&self) -> u32 {
        // Built from a `u32` count.
        self.0.len() as u32
    }

    #[inline]
    pub(super) fn meta(&self, frame: FrameId) -> &FrameMeta {
        &self.0[frame.as_usize()]
    }

    /// Like [`meta`](Self::meta) for numbers that come from outside.
    pub(super) fn get(&self, frame: FrameId) -> Option<&FrameMeta> {
        self.0.get(frame.as_usize())
    }

    /// Bytes of metadata for each frame.
    pub(super) const fn bytes_per_frame() -> usize {
        size_of::<FrameMeta>()
    }
}
