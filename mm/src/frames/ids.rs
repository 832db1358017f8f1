// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frame numbers, orders and blocks of a pool, each with its own type and named conversions. Sizes
//! in bytes are those of [`crate::units`]; only the numbering is the pool's own.

use std::fmt;

use crate::units::{PAGE_BYTES, PAGE_SHIFT, PAGES_PER_BLOCK};

/// log2 of the frames in a block.
pub const BLOCK_ORDER: u8 = 9;
/// Frames in a block: a frame is a page of host memory, a block one huge page of it.
pub const BLOCK_FRAMES: u32 = 1 << BLOCK_ORDER;
const _: () = assert!(BLOCK_FRAMES as u64 == PAGES_PER_BLOCK);
/// The largest order the buddy allocator hands out, 4 MiB.
pub const MAX_ORDER: u8 = 10;
/// Number of orders, 0 to [`MAX_ORDER`].
pub const NR_ORDERS: usize = MAX_ORDER as usize + 1;

/// One 4 KiB frame of a pool, counted from the start of its region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(u32);

impl FrameId {
    /// The frame with number `index`.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Number of the frame, counted from the start of the region.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The same number, to index slices with.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Byte offset of the frame in its region.
    #[must_use]
    pub const fn byte_offset(self) -> usize {
        (self.0 as usize) << PAGE_SHIFT
    }

    /// The block that holds the frame.
    #[must_use]
    pub const fn block(self) -> FrameBlock {
        FrameBlock(self.0 >> BLOCK_ORDER)
    }

    /// Whether the frame can be the head of a naturally aligned unit of `order`.
    #[must_use]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.frames() - 1) == 0
    }

    /// The head of the aligned unit of `order` that holds the frame.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.frames() - 1))
    }

    /// The frame `frames` further, or `None` past the largest number.
    #[must_use]
    pub const fn checked_add(self, frames: u32) -> Option<Self> {
        match self.0.checked_add(frames) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The other half of the pair that makes one unit of the next order.
    #[must_use]
    pub(crate) const fn buddy(self, order: Order) -> Self {
        Self(self.0 ^ order.frames())
    }

    /// The frame `frames` further; for offsets that the caller knows to lie in the pool.
    #[must_use]
    pub(crate) const fn offset(self, frames: u32) -> Self {
        Self(self.0 + frames)
    }
}

impl fmt::Debug for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "F{:#x}", self.0)
    }
}

/// Number of a 2 MiB block of a pool, counted from the start of its region. Guest memory has
/// [`BlockId`](crate::units::BlockId), a guest-physical address; the two are not related.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameBlock(u32);

impl FrameBlock {
    /// The block with number `index`.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Number of the block.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The same number, to index slices with.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// First frame of the block.
    #[must_use]
    pub const fn first(self) -> FrameId {
        FrameId(self.0 << BLOCK_ORDER)
    }

    /// One past the last frame of the block.
    #[must_use]
    pub const fn end(self) -> FrameId {
        FrameId((self.0 + 1) << BLOCK_ORDER)
    }

    /// The block after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for FrameBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "B{}", self.0)
    }
}

/// A power of two of frames, 0 to [`MAX_ORDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// A single frame.
    pub const ZERO: Self = Self(0);
    /// One page block, 2 MiB.
    pub const BLOCK: Self = Self(BLOCK_ORDER);
    /// The largest unit, 4 MiB.
    pub const MAX: Self = Self(MAX_ORDER);

    /// The order, or `None` above [`MAX_ORDER`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= MAX_ORDER { Some(Self(order)) } else { None }
    }

    /// The smallest order that holds `frames` frames; `None` for zero or more than 1024.
    #[must_use]
    pub const fn for_frames(frames: u32) -> Option<Self> {
        if frames == 0 || frames > 1 << MAX_ORDER {
            return None;
        }
        // At most 10 after the check above.
        Some(Self(frames.next_power_of_two().trailing_zeros() as u8))
    }

    /// The order as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Frames in a unit of this order.
    #[must_use]
    pub const fn frames(self) -> u32 {
        1 << self.0
    }

    /// Bytes in a unit of this order.
    #[must_use]
    pub const fn bytes(self) -> usize {
        PAGE_BYTES << self.0
    }

    /// All orders from this one up.
    pub fn and_above(self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=MAX_ORDER).map(Self)
    }

    /// All orders.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        Self::ZERO.and_above()
    }

    pub(crate) const fn up(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// One order less; the caller knows that this one is not zero.
    pub(crate) const fn down(self) -> Self {
        Self(self.0 - 1)
    }

    pub(crate) const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// The order in the low four bits of `raw`, held down to the largest.
    pub(crate) const fn from_bits(raw: u8) -> Self {
        if raw > MAX_ORDER { Self(MAX_ORDER) } else { Self(raw) }
    }

    /// The largest order at which `frame` is aligned and no longer than `limit` frames.
    pub(crate) fn largest_at(frame: FrameId, limit: u32) -> Self {
        debug_assert!(limit > 0);
        let align = frame.index().trailing_zeros().min(u32::from(MAX_ORDER));
        // Both are at most 31; the minimum at most 10.
        Self(align.min(limit.ilog2()) as u8)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A run of frames, `start` included, `end` not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRange {
    /// First frame.
    pub start: FrameId,
    /// One past the last frame.
    pub end: FrameId,
}

impl FrameRange {
    /// `count` frames from `start`; `None` if empty or past the largest number.
    #[must_use]
    pub const fn new(start: FrameId, count: u32) -> Option<Self> {
        if count == 0 {
            return None;
        }
        match start.checked_add(count) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// Number of frames.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether `frame` lies in the range.
    #[must_use]
    pub const fn contains(self, frame: FrameId) -> bool {
        self.start.0 <= frame.0 && frame.0 < self.end.0
    }

    /// Every frame of the range.
    pub fn frames(self) -> impl Iterator<Item = FrameId> {
        (self.start.0..self.end.0).map(FrameId)
    }

    /// Every block that the range touches.
    pub fn blocks(self) -> impl Iterator<Item = FrameBlock> + Clone {
        let last = self.end.0.div_ceil(BLOCK_FRAMES);
        (self.start.block().0..last).map(FrameBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_for_frames() {
        assert_eq!(Order::for_frames(0), None);
        assert_eq!(Order::for_frames(1), Some(Order::ZERO));
        assert_eq!(Order::for_frames(3).unwrap().get(), 2);
        assert_eq!(Order::for_frames(1024), Some(Order::MAX));
        assert_eq!(Order::for_frames(1025), None);
    }

    #[test]
    fn largest_unit_is_aligned_and_fits() {
        for start in 0..2048u32 {
            for limit in [1, 2, 3, 511, 512, 5000] {
                let order = Order::largest_at(FrameId::new(start), limit);
                assert!(FrameId::new(start).is_aligned(order));
                assert!(order.frames() <= limit);
            }
        }
    }
}
