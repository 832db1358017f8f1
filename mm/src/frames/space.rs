// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The frames themselves: the bytes and the metadata word of each. What may be done with them is
//! decided above.

use super::ids::FrameId;
use super::page::{FrameMeta, FrameTable};
use super::region::Region;
use super::token::PoolId;
use crate::units::PAGE_BYTES;

/// The memory of one pool and a word of state for each of its frames.
pub(super) struct FrameSpace {
    id: PoolId,
    region: Region,
    table: FrameTable,
}

impl FrameSpace {
    pub(super) fn new(region: Region) -> Self {
        Self { id: PoolId::next(), table: FrameTable::new(region.frames()), region }
    }

    pub(super) fn id(&self) -> PoolId {
        self.id
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    pub(super) fn table(&self) -> &FrameTable {
        &self.table
    }

    #[inline]
    pub(super) fn meta(&self, frame: FrameId) -> &FrameMeta {
        self.table.meta(frame)
    }

    /// Like [`meta`](Self::meta), for numbers that come from outside.
    pub(super) fn get_meta(&self, frame: FrameId) -> Option<&FrameMeta> {
        self.table.get(frame)
    }

    /// Copies a frame for a migration: both are locked by the core.
    pub(super) fn copy_frame(&self, dst: FrameId, src: FrameId) {
        assert_ne!(dst, src);
        // SAFETY: the destination is locked and was free, so it is the core's alone.
        let to = unsafe { self.region.slice_mut(dst, 1) };
        // SAFETY: the source is locked, and its owner keeps its writers away while `migrate`
        // runs: `Owner::with_frame` waits for the lock, an owner that uses raw pointers has
        // promised it where it made them.
        let from = unsafe { self.region.slice(src, 1) };
        to.copy_from_slice(from);
    }

    /// The contents of a frame that the caller has pinned, for as long as the pin is held.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that there is no other")]
    pub(super) fn locked_bytes(&self, frame: FrameId) -> &mut [u8; PAGE_BYTES] {
        // SAFETY: the frame is locked by the caller (`Owner::with_frame`), which hands the
        // reference to a closure that ends before the lock does; all other threads wait for it.
        let bytes = unsafe { self.region.slice_mut(frame, 1) };
        bytes.try_into().expect("one frame")
    }
}
