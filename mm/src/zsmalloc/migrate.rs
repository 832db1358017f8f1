// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The frame pool's callbacks: any frame of any chain can be replaced by another.
//!
//! Handles name zspages and not frames, so a migrated frame changes one entry of its chain, where
//! Linux has to rewrite the handle of every object in the page.

use std::sync::atomic::Ordering;

use crate::frames::{LockedFrame, MigrateError, MigrateMode, MovableOps, TargetFrame};

use super::class::MAX_CHAIN;
use super::handle::ZSPAGE_BITS;
use super::pool::ZsPool;

const POSITION_BITS: u32 = 3;
const _: () = assert!(MAX_CHAIN == 1 << POSITION_BITS && ZSPAGE_BITS + POSITION_BITS <= 32);

/// The owner's word of a frame: its zspage and its position in the chain.
pub(super) fn private(zspage: u32, position: usize) -> u32 {
    // Below eight.
    #[allow(clippy::cast_possible_truncation)]
    let position = position as u32;
    zspage << POSITION_BITS | position
}

impl MovableOps for ZsPool {
    /// Nothing to do: zspages stay on their lists, and `migrate` looks whether the frame is
    /// still in its chain.
    fn isolate(&self, _frame: &LockedFrame<'_>, _mode: MigrateMode) -> bool {
        true
    }

    fn migrate(
        &self,
        dst: &mut TargetFrame<'_>,
        src: &mut LockedFrame<'_>,
        mode: MigrateMode,
    ) -> Result<(), MigrateError> {
        // These callbacks are public: in another pool the frame's number may be one of ours.
        if !self.owner.get().is_some_and(|owner| owner.owns(src)) {
            return Err(MigrateError::Unknown);
        }
        let zspage =
            self.zspages.get(src.private() >> POSITION_BITS).ok_or(MigrateError::Unknown)?;
        let position = (src.private() & ((1 << POSITION_BITS) - 1)) as usize;
        let class = usize::from(zspage.class());
        if self.slots.get(class).is_none() {
            // Being made or freed just now.
            return Err(MigrateError::Again);
        }
        let wait = mode != MigrateMode::Async;
        // Keeps objects and headers still. The zspage may have been freed and have another class
        // by now; then the frame is not in it any more, for the pool holds a reference on it.
        let Some(_state) = self.lock_class(class, wait) else { return Err(MigrateError::Again) };
        if usize::from(zspage.class()) != class || zspage.frame(position) != src.id() {
            return Err(MigrateError::Again);
        }
        if !zspage.lock.try_write() {
            return Err(MigrateError::Again);
        }
        let moved = dst.take_over(src);
        if moved.is_ok() {
            zspage.set_frame(position, dst.id());
            self.migrated.fetch_add(1, Ordering::Relaxed);
        }
        zspage.lock.unwrite();
        moved
    }

    fn putback(&self, _frame: &LockedFrame<'_>) {}
}
