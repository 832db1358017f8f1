// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of an allocation, and its errors.

use super::ids::Order;
use super::pageblock::Mobility;

/// Flags of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gfp {
    mobility: Mobility,
    compact: bool,
    emergency: bool,
}

impl Gfp {
    /// Frames that stay where they are.
    pub const UNMOVABLE: Self = Self::for_mobility(Mobility::Unmovable);
    /// Frames for an [`Owner`](super::Owner) that can move them; may lie in CMA.
    pub const MOVABLE: Self = Self::for_mobility(Mobility::Movable);
    /// Frames that can be freed on request.
    pub const RECLAIMABLE: Self = Self::for_mobility(Mobility::Reclaimable);

    /// Ordinary allocation of one mobility.
    #[must_use]
    pub const fn for_mobility(mobility: Mobility) -> Self {
        Self { mobility, compact: true, emergency: false }
    }

    /// Fail instead of compacting or reclaiming.
    #[must_use]
    pub const fn without_compaction(self) -> Self {
        Self { compact: false, ..self }
    }

    /// May use the reserve below the lowest watermark.
    #[must_use]
    pub const fn emergency(self) -> Self {
        Self { emergency: true, ..self }
    }

    /// What the frames are for.
    #[must_use]
    pub const fn mobility(self) -> Mobility {
        self.mobility
    }

    pub(super) const fn may_compact(self) -> bool {
        self.compact
    }

    pub(super) const fn is_emergency(self) -> bool {
        self.emergency
    }
}

/// Why an allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Too little is free.
    #[error("out of memory: {free} frames free, order {order} requested")]
    NoMemory {
        /// Order asked for.
        order: Order,
        /// Frames free for such an allocation.
        free: u32,
    },
    /// Enough is free, but not contiguous, and compaction did not help.
    #[error("fragmented: {free} frames free, but none of order {order}")]
    Fragmented {
        /// Order asked for.
        order: Order,
        /// Frames free for such an allocation.
        free: u32,
    },
}
