// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CMA areas: ranges reserved for contiguous allocation, and which of their frames are allocated.

use std::sync::{Mutex, PoisonError};

use super::ids::{FrameId, FrameRange};

/// Frames reserved for contiguous allocation.
pub(super) struct CmaArea {
    range: FrameRange,
    /// One flag per frame: whether it is allocated.
    taken: Mutex<Vec<bool>>,
}

impl CmaArea {
    pub(super) fn new(range: FrameRange) -> Self {
        Self { range, taken: Mutex::new(vec![false; range.count() as usize]) }
    }

    pub(super) fn range(&self) -> FrameRange {
        self.range
    }

    /// Marks the first free run at or after `from`.
    pub(super) fn reserve(&self, from: FrameId, count: u32, align: u32) -> Option<FrameRange> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = from.max(self.range.start).index().checked_next_multiple_of(align)?;
        loop {
            let range = FrameRange::new(FrameId::new(start), count)?;
            if range.end > self.range.end {
                return None;
            }
            let slots = self.slots(range);
            match taken[slots.clone()].iter().rposition(|&t| t) {
                None => {
                    taken[slots].fill(true);
                    return Some(range);
                }
                Some(last) => {
                    let next = start.checked_add(u32::try_from(last).ok()?)?.checked_add(1)?;
                    start = next.checked_next_multiple_of(align)?;
                }
            }
        }
    }

    /// Marks a run as free.
    pub(super) fn release(&self, range: FrameRange) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[self.slots(range)].fill(false);
    }

    fn slots(&self, range: FrameRange) -> std::ops::Range<usize> {
        let base = self.range.start.as_usize();
        range.start.as_usize() - base..range.end.as_usize() - base
    }
}
