// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Zspages made of frames, and frames given back.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::frames::{AllocError, FrameId, Gfp, Order};

use super::class::{MAX_CHAIN, SizeClass};
use super::lists::ClassState;
use super::migrate::private;
use super::pool::{ZsError, ZsPool};

/// A zspage that was closed, with the frames it had.
pub(super) struct Emptied {
    number: u32,
    frames: [Option<FrameId>; MAX_CHAIN],
}

impl ZsPool {
    #[cold]
    pub(super) fn new_zspage(&self, class: usize, shape: &SizeClass) -> Result<u32, ZsError> {
        let number = self.free_zspages.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = number.or_else(|| self.zspages.grow(1).map(|r| r.start));
        let number = number.ok_or(ZsError::Limit(self.frames.frame_count()))?;
        let mut frames = [FrameId::new(0); MAX_CHAIN];
        for position in 0..shape.frames {
            match self.alloc_frame(number, position) {
                Ok(frame) => frames[position] = frame,
                Err(error) => {
                    let had = frames.into_iter().take(position);
                    had.for_each(|frame| self.free_frame(frame));
                    self.recycle(number);
                    return Err(error);
                }
            }
        }
        // Until now the frames were movable but in no chain, and `migrate` refused them.
        // A class is one of at most 255.
        #[allow(clippy::cast_possible_truncation)]
        self.zspage(number).open(class as u16, &frames[..shape.frames]);
        Ok(number)
    }

    /// Takes a zspage off its list and closes it. The caller frees the frames without the lock.
    pub(super) fn detach(&self, state: &mut ClassState, number: u32) -> Emptied {
        self.unlink(state, number);
        let mut emptied = Emptied { number, frames: [None; MAX_CHAIN] };
        for (to, frame) in emptied.frames.iter_mut().zip(self.zspage(number).close()) {
            *to = Some(frame);
        }
        emptied
    }

    /// Frees the frames of a closed zspage; returns how many.
    pub(super) fn free_frames(&self, emptied: Emptied) -> u64 {
        let frames = emptied.frames.into_iter().flatten();
        let freed = frames.map(|frame| self.free_frame(frame)).count();
        self.recycle(emptied.number);
        freed as u64
    }

    fn recycle(&self, number: u32) {
        self.free_zspages.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    fn alloc_frame(&self, zspage: u32, position: usize) -> Result<FrameId, ZsError> {
        let used = self.frames_used.fetch_add(1, Ordering::Relaxed) + 1;
        let result = match self.config.limit {
            Some(limit) if used > u64::from(limit) => Err(ZsError::Limit(limit)),
            _ => self.alloc_from_pool(zspage, position).map_err(ZsError::from),
        };
        match result {
            Ok(_) => self.frames_max.fetch_max(used, Ordering::Relaxed),
            Err(_) => self.frames_used.fetch_sub(1, Ordering::Relaxed),
        };
        result
    }

    fn alloc_from_pool(&self, zspage: u32, position: usize) -> Result<FrameId, AllocError> {
        match self.owner.get() {
            Some(owner) => owner.alloc(Gfp::MOVABLE, private(zspage, position)),
            None => self.frames.alloc(Order::ZERO, Gfp::UNMOVABLE).map(|f| f.into_parts().0),
        }
    }

    pub(super) fn free_frame(&self, frame: FrameId) {
        self.frames_used.fetch_sub(1, Ordering::Relaxed);
        let freed = match self.owner.get() {
            Some(owner) => owner.free(frame).is_ok(),
            // The token was taken apart in `alloc_from_pool`, and this is the only way back.
            None => self.frames.free(self.frames.token(frame, Order::ZERO)).is_ok(),
        };
        debug_assert!(freed, "{frame:?} was in a chain of ours");
    }
}
