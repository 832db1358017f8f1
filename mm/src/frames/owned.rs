// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An allocated unit that frees itself.

use std::sync::Arc;

use super::gfp::{AllocError, Gfp};
use super::ids::Order;
use super::pool::FramePool;
use super::token::Frames;

/// An allocated unit that frees itself.
pub struct OwnedFrames {
    pool: Arc<FramePool>,
    /// Always there until dropped.
    frames: Option<Frames>,
}

impl OwnedFrames {
    /// Allocates a unit.
    ///
    /// # Errors
    /// As [`FramePool::alloc`].
    pub fn new(pool: &Arc<FramePool>, order: Order, gfp: Gfp) -> Result<Self, AllocError> {
        let frames = pool.alloc(order, gfp)?;
        Ok(Self { pool: Arc::clone(pool), frames: Some(frames) })
    }
}

impl std::ops::Deref for OwnedFrames {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frames.as_ref().map_or(&[], |frames| self.pool.bytes(frames))
    }
}

impl std::ops::DerefMut for OwnedFrames {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.frames {
            Some(frames) => self.pool.bytes_mut(frames),
            None => &mut [],
        }
    }
}

impl Drop for OwnedFrames {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            let freed = self.pool.free(frames);
            debug_assert!(freed.is_ok(), "allocated from this pool");
        }
    }
}
