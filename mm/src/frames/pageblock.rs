// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrate types of 2 MiB blocks, and which type may fall back to which.

use super::ids::{BLOCK_FRAMES, BLOCK_ORDER, FrameBlock, FrameId, Order};
use super::sync::{AtomicU32, Ordering};

/// The kind of allocation that a block is meant for. Frames that cannot move are grouped in few
/// blocks, so that the other blocks can be evacuated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MigrateType {
    /// Frames that stay where they are.
    Unmovable = 0,
    /// Frames whose owner can move them.
    Movable = 1,
    /// Frames whose owner can give them up but not move them.
    Reclaimable = 2,
    /// Blocks reserved for contiguous allocation; movable frames may use them.
    Cma = 3,
    /// Blocks being evacuated: nothing is allocated from them.
    Isolate = 4,
}

/// Number of migrate types.
pub const NR_TYPES: usize = 5;

impl MigrateType {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; NR_TYPES] =
        [Self::Unmovable, Self::Movable, Self::Reclaimable, Self::Cma, Self::Isolate];

    pub(super) const fn as_usize(self) -> usize {
        self as usize
    }

    const fn from_bits(raw: u32) -> Self {
        match raw {
            0 => Self::Unmovable,
            1 => Self::Movable,
            2 => Self::Reclaimable,
            3 => Self::Cma,
            _ => Self::Isolate,
        }
    }

    /// Whether units of this type may merge across blocks with units of other such types. CMA and
    /// isolated memory never merge with other types, or they would leak out through a merged unit.
    pub(super) const fn is_mergeable(self) -> bool {
        matches!(self, Self::Unmovable | Self::Movable | Self::Reclaimable)
    }

    /// Whether compaction may put movable frames into a block of this type.
    pub(super) const fn takes_movable(self) -> bool {
        matches!(self, Self::Movable | Self::Cma)
    }
}

/// What an allocation is for, which decides the blocks it may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mobility {
    /// Never moves.
    Unmovable,
    /// Will be given to an [`Owner`](super::Owner) with migration callbacks; may come from CMA.
    Movable,
    /// Can be freed on request but not moved.
    Reclaimable,
}

impl Mobility {
    /// Every mobility, in the order of the caches' lists.
    pub const ALL: [Self; 3] = [Self::Unmovable, Self::Movable, Self::Reclaimable];

    /// The block type that such an allocation is looked for first.
    #[must_use]
    pub const fn migrate_type(self) -> MigrateType {
        match self {
            Self::Unmovable => MigrateType::Unmovable,
            Self::Movable => MigrateType::Movable,
            Self::Reclaimable => MigrateType::Reclaimable,
        }
    }

    /// Whether free CMA memory may be lent to it.
    pub(super) const fn may_use_cma(self) -> bool {
        matches!(self, Self::Movable)
    }

    /// Types to steal from, best first: those whose loss hurts grouping least.
    pub(super) const fn fallbacks(self) -> [MigrateType; 2] {
        match self {
            Self::Unmovable => [MigrateType::Reclaimable, MigrateType::Movable],
            Self::Movable => [MigrateType::Reclaimable, MigrateType::Unmovable],
            Self::Reclaimable => [MigrateType::Unmovable, MigrateType::Movable],
        }
    }

    /// Whether taking a unit of `order` from another type's block should try to take the whole
    /// block. Unmovable frames would otherwise spread over many blocks of other types; movable ones
    /// do no lasting harm and claim a block only for large units.
    pub(super) const fn claims_block(self, order: Order) -> bool {
        order.get() >= BLOCK_ORDER / 2 || !matches!(self, Self::Movable)
    }
}

const TYPE_BITS: u32 = 0b111;

/// Which compaction scanner recently found nothing in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Skip {
    /// The scanner for movable frames.
    Source = 1 << 3,
    /// The scanner for free frames.
    Target = 1 << 4,
}

/// Type and compaction hint of every block.
pub(super) struct BlockTypes(Box<[AtomicU32]>);

impl BlockTypes {
    pub(super) fn new(frames: u32, initial: MigrateType) -> Self {
        let count = frames.div_ceil(BLOCK_FRAMES);
        Self((0..count).map(|_| AtomicU32::new(initial as u32)).collect())
    }

    pub(super) fn len(&self) -> u32 {
        // Built from a `u32` count.
        self.0.len() as u32
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = FrameBlock> + use<> {
        (0..self.len()).map(FrameBlock::new)
    }

    /// The type of a block; stable only under the zone lock.
    #[inline]
    pub(super) fn type_of(&self, block: FrameBlock) -> MigrateType {
        MigrateType::from_bits(self.0[block.as_usize()].load(Ordering::Acquire) & TYPE_BITS)
    }

    #[inline]
    pub(super) fn type_at(&self, frame: FrameId) -> MigrateType {
        self.type_of(frame.block())
    }

    /// Sets the type in one step: a thread that frees a frame reads it without the zone lock.
    pub(super) fn set_type(&self, block: FrameBlock, new: MigrateType) {
        let cell = &self.0[block.as_usize()];
        // The caller holds the zone lock, so only the skip bits can change.
        let old = cell.load(Ordering::Relaxed) & TYPE_BITS;
        cell.fetch_xor(old ^ new as u32, Ordering::AcqRel);
    }

    /// Whether a scanner should pass over this block.
    pub(super) fn is_skipped(&self, block: FrameBlock, skip: Skip) -> bool {
        self.0[block.as_usize()].load(Ordering::Relaxed) & skip as u32 != 0
    }

    pub(super) fn set_skip(&self, block: FrameBlock, skip: Skip) {
        self.0[block.as_usize()].fetch_or(skip as u32, Ordering::Relaxed);
    }

    pub(super) fn clear_skips(&self) {
        for cell in &self.0 {
            cell.fetch_and(TYPE_BITS, Ordering::Relaxed);
        }
    }
}
