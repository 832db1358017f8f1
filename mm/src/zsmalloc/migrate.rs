// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration of frames: any frame of any chain can be replaced by another.
//!
//! Handles name zspages and not frames, so a migrated frame changes one entry of its chain, where
//! Linux has to rewrite the handle of every object in the page.

use super::heap::Heap;
use super::zspage::FrameLink;
use crate::frames::{LockedFrame, MigrateError, MigrateMode, TargetFrame};

/// [`MovableOps::migrate`](crate::frames::MovableOps::migrate) for the frames of a heap.
pub(super) fn migrate(
    heap: &Heap,
    dst: &mut TargetFrame<'_>,
    src: &mut LockedFrame<'_>,
    mode: MigrateMode,
) -> Result<(), MigrateError> {
    // These callbacks are public: in another pool the frame's number may be one of ours.
    if !heap.supply().owns(src) {
        return Err(MigrateError::Unknown);
    }
    let link = FrameLink::from_private(src.private());
    let zspage = heap.zspages().get(link.zspage).ok_or(MigrateError::Unknown)?;
    let number = usize::from(zspage.class());
    // A zspage without a class is being created or freed.
    let class = heap.classes().get(number).ok_or(MigrateError::Again)?;
    // Keeps objects and headers still. The zspage may have been freed and have another class
    // by now; then the frame is not in it any more, for the pool holds a reference on it.
    let _state = match mode {
        MigrateMode::Async => class.try_lock().ok_or(MigrateError::Again)?,
        MigrateMode::SyncLight | MigrateMode::Sync => class.lock(),
    };
    if usize::from(zspage.class()) != number || zspage.frame(link.position) != src.id() {
        return Err(MigrateError::Again);
    }
    if !zspage.lock.try_write() {
        return Err(MigrateError::Again);
    }
    let moved = dst.take_over(src);
    if moved.is_ok() {
        zspage.set_frame(link.position, dst.id());
        heap.add_migrated();
    }
    zspage.lock.unwrite();
    moved
}
