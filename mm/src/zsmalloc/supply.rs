// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames for zspages, within the pool's limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::config::ZsConfig;
use super::error::ZsError;
use super::zspage::FrameLink;
use crate::frames::{AllocError, FrameId, FramePool, Gfp, LockedFrame, Order, Owner, Region};

/// The source of frames, and their number.
pub(super) struct Supply {
    frames: Arc<FramePool>,
    /// Set once, right after creation; absent in a pool of unmovable frames.
    owner: OnceLock<Owner>,
    config: ZsConfig,
    used: AtomicU64,
    most: AtomicU64,
}

impl Supply {
    pub(super) fn new(frames: &Arc<FramePool>, config: ZsConfig) -> Self {
        Self {
            frames: Arc::clone(frames),
            owner: OnceLock::new(),
            config,
            used: AtomicU64::new(0),
            most: AtomicU64::new(0),
        }
    }

    /// Makes frames movable from now on. Called once, before the first frame is allocated.
    pub(super) fn set_owner(&self, owner: Owner) {
        let set = self.owner.set(owner);
        debug_assert!(set.is_ok(), "called twice");
    }

    pub(super) fn frame_pool(&self) -> &Arc<FramePool> {
        &self.frames
    }

    pub(super) fn region(&self) -> &Region {
        self.frames.region()
    }

    /// Whether a frame in a migration callback is one of ours.
    pub(super) fn owns(&self, frame: &LockedFrame<'_>) -> bool {
        self.owner.get().is_some_and(|owner| owner.owns(frame))
    }

    /// Frames in use.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Most frames in use at any time.
    pub(super) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Allocates the frame for `link`.
    pub(super) fn alloc(&self, link: FrameLink) -> Result<FrameId, ZsError> {
        let used = self.used.fetch_add(1, Ordering::Relaxed) + 1;
        let result = match self.config.limit {
            Some(limit) if used > u64::from(limit) => Err(ZsError::Limit(limit)),
            _ => self.alloc_from_pool(link).map_err(ZsError::from),
        };
        match result {
            Ok(_) => self.most.fetch_max(used, Ordering::Relaxed),
            Err(_) => self.used.fetch_sub(1, Ordering::Relaxed),
        };
        result
    }

    fn alloc_from_pool(&self, link: FrameLink) -> Result<FrameId, AllocError> {
        match self.owner.get() {
            Some(owner) => owner.alloc(Gfp::MOVABLE, link.to_private()),
            None => self.frames.alloc(Order::ZERO, Gfp::UNMOVABLE).map(|f| f.into_parts().0),
        }
    }

    pub(super) fn free(&self, frame: FrameId) {
        self.used.fetch_sub(1, Ordering::Relaxed);
        let freed = match self.owner.get() {
            Some(owner) => owner.free(frame).is_ok(),
            // The token was taken apart in `alloc_from_pool`, and this is the only way back.
            None => self.frames.free(self.frames.token(frame, Order::ZERO)).is_ok(),
        };
        debug_assert!(freed, "{frame:?} was in a chain of ours");
    }
}
