// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tokens of allocated memory: the holder owns the memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ids::{FrameId, FrameRange, Order};
use crate::units::PAGE_BYTES;

/// Identifies the pool, so that another pool rejects the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(u64);

impl PoolId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An allocated unit: 2^order frames, the holder's alone.
///
/// Neither copied nor cloned: to hold it is to own the memory. Give it back with
/// [`FramePool::free`](super::FramePool::free); a unit that is dropped stays allocated. [`OwnedFrames`](super::OwnedFrames) frees itself.
#[derive(Debug)]
#[must_use = "frames that are dropped stay allocated"]
pub struct Frames {
    first: FrameId,
    order: Order,
    pool: PoolId,
}

impl Frames {
    pub(super) fn new(first: FrameId, order: Order, pool: PoolId) -> Self {
        Self { first, order, pool }
    }

    pub(super) fn pool(&self) -> PoolId {
        self.pool
    }

    /// First frame.
    #[must_use]
    pub fn first(&self) -> FrameId {
        self.first
    }

    /// Order of the unit.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    pub(crate) fn into_parts(self) -> (FrameId, Order) {
        (self.first, self.order)
    }
}

/// A contiguous run of frames, the holder's alone. Give it back with
/// [`FramePool::free_contig`](super::FramePool::free_contig); a run that is dropped stays allocated.
#[derive(Debug)]
#[must_use = "a run of frames that is dropped stays allocated"]
pub struct ContigFrames {
    range: FrameRange,
    pool: PoolId,
    /// The CMA area that it came from.
    area: Option<usize>,
}

impl ContigFrames {
    pub(super) fn new(range: FrameRange, pool: PoolId, area: Option<usize>) -> Self {
        Self { range, pool, area }
    }

    pub(super) fn pool(&self) -> PoolId {
        self.pool
    }

    pub(super) fn area(&self) -> Option<usize> {
        self.area
    }

    /// Which frames.
    #[must_use]
    pub fn range(&self) -> FrameRange {
        self.range
    }

    /// Bytes in the run.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.range.count() as usize * PAGE_BYTES
    }
}

/// Why frames were not freed.
#[derive(Debug, thiserror::Error)]
pub enum FreeError {
    /// The frames belong to another pool; they are returned.
    #[error("the frames belong to another pool")]
    Foreign(Frames),
}
