// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An owner's side of a pool: frames that the pool may move.

use std::sync::{Arc, Weak};

use super::callbacks::{Inside, holds_frame};
use super::config::PoolError;
use super::gfp::{AllocError, Gfp};
use super::ids::{FrameId, Order};
use super::movable::{LockedFrame, MovableOps};
use super::page::{FrameMeta, OwnerId, PinError};
use super::pool::FramePool;
use super::pool_core::PoolCore;
use super::sync::Backoff;
use super::token::Frames;
use crate::units::PAGE_BYTES;

/// Why an owner's request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// The frame is not in the pool, not movable, or belongs to another owner: a foreign handle or
    /// a double free.
    #[error("{0:?} does not belong to this owner")]
    NotOwned(FrameId),
    /// Only single frames can be movable.
    #[error("only single frames can be movable")]
    NotSingle,
    /// The frames belong to another pool.
    #[error("the frames belong to another pool")]
    Foreign,
    /// The frame is isolated or locked and cannot be taken back now.
    #[error("{0:?} is being moved")]
    Moving(FrameId),
    /// The frame is locked, and waiting for it here might never end.
    #[error("{0:?} is locked, and the caller is in a callback or holds another frame")]
    InCallback(FrameId),
}

/// An owner's access to a pool: allocates, frees and reads its movable frames.
pub struct Owner {
    pool: Arc<FramePool>,
    id: OwnerId,
}

impl Owner {
    /// Registers an owner of movable frames of `pool`. The pool does not keep `ops` alive: frames
    /// whose owner is gone are not moved any more.
    ///
    /// # Errors
    /// [`PoolError::TooManyOwners`].
    pub fn register(pool: &Arc<FramePool>, ops: Weak<dyn MovableOps>) -> Result<Self, PoolError> {
        let id = pool.core().owners().register(ops).ok_or(PoolError::TooManyOwners)?;
        Ok(Self { pool: Arc::clone(pool), id })
    }

    /// Whether `frame` belongs to this owner. Callbacks that hand out memory by frame numbers of
    /// their own must ask: they can be registered with another pool, or called by another owner's.
    #[must_use]
    pub fn owns(&self, frame: &LockedFrame<'_>) -> bool {
        frame.is_owned_by(self.id, self.pool.id())
    }

    /// The pool the frames come from.
    #[must_use]
    pub fn pool(&self) -> &Arc<FramePool> {
        &self.pool
    }

    fn core(&self) -> &PoolCore {
        self.pool.core()
    }

    /// Allocates a frame and makes it movable. `private` is the owner's own, to find its
    /// structures by in the callbacks.
    ///
    /// # Errors
    /// As [`FramePool::alloc`].
    pub fn alloc(&self, gfp: Gfp, private: u32) -> Result<FrameId, AllocError> {
        let frames = self.pool.alloc(Order::ZERO, gfp)?;
        let (frame, _) = frames.into_parts();
        self.core().meta(frame).adopt(self.id, private);
        Ok(frame)
    }

    /// Makes an allocated frame movable.
    ///
    /// # Errors
    /// [`OwnerError::NotSingle`] or [`OwnerError::Foreign`], with the frames.
    pub fn adopt(&self, frames: Frames, private: u32) -> Result<FrameId, (OwnerError, Frames)> {
        if frames.pool() != self.pool.id() {
            return Err((OwnerError::Foreign, frames));
        }
        if frames.order() != Order::ZERO {
            return Err((OwnerError::NotSingle, frames));
        }
        let (frame, _) = frames.into_parts();
        self.core().meta(frame).adopt(self.id, private);
        Ok(frame)
    }

    /// Gives a frame back. If it is isolated, the pool drops it later.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`].
    pub fn free(&self, frame: FrameId) -> Result<(), OwnerError> {
        let meta = self.core().space().get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        match meta.disown(self.id) {
            Some(true) => self.core().free_single(frame),
            Some(false) => {}
            None => return Err(OwnerError::NotOwned(frame)),
        }
        Ok(())
    }

    /// Makes a frame unmovable again and returns it as an ordinary allocation.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`], or [`OwnerError::Moving`] while it is isolated or locked.
    pub fn reclaim(&self, frame: FrameId) -> Result<Frames, OwnerError> {
        let meta = self.core().space().get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        if meta.reclaim(self.id) {
            return Ok(self.pool.token(frame, Order::ZERO));
        }
        let word = meta.load();
        if word.is_movable() && word.owner() == self.id {
            Err(OwnerError::Moving(frame))
        } else {
            Err(OwnerError::NotOwned(frame))
        }
    }

    /// Changes the owner's word of a frame.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`].
    pub fn set_private(&self, frame: FrameId, private: u32) -> Result<(), OwnerError> {
        let meta = self.core().space().get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        if meta.set_private(self.id, private) { Ok(()) } else { Err(OwnerError::NotOwned(frame)) }
    }

    /// Runs `f` on the contents of a frame, which neither moves nor is freed during the call.
    /// Concurrent calls for one frame wait for each other. Inside `f` the pool neither compacts for
    /// this thread nor makes it wait for a frame: the frame held could be the one waited for.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`] or [`OwnerError::InCallback`].
    pub fn with_frame<R>(
        &self,
        frame: FrameId,
        f: impl FnOnce(&mut [u8; PAGE_BYTES]) -> R,
    ) -> Result<R, OwnerError> {
        let meta = self.core().space().get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        let mut backoff = Backoff::new();
        loop {
            match meta.try_pin(self.id) {
                Ok(()) => break,
                Err(PinError::NotOwned) => return Err(OwnerError::NotOwned(frame)),
                Err(PinError::Locked) if holds_frame() => {
                    return Err(OwnerError::InCallback(frame));
                }
                Err(PinError::Locked) => backoff.snooze(),
            }
        }
        let pin = Pin { core: self.core(), meta, frame };
        let _inside = Inside::enter();
        Ok(f(pin.core.space().locked_bytes(pin.frame)))
    }
}

/// Unlocks and puts a frame, also when the owner's closure panics.
struct Pin<'a> {
    core: &'a PoolCore,
    meta: &'a FrameMeta,
    frame: FrameId,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if self.meta.unlock_put() {
            self.core.free_single(self.frame);
        }
    }
}
