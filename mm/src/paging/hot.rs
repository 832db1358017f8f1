// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hot set: the blocks that the guest used after it was parked, in that order. A block of which
//! it accessed only a few pages is not one.
//!
//! A guest that wakes up accesses much the same blocks each time, so the previous order determines
//! what to bring back first, and what to read ahead after an access.

use std::collections::HashMap;

/// Blocks that are remembered.
const MOST: usize = 4096;

/// Touched blocks in the order of their first touch.
#[derive(Debug, Default)]
pub(super) struct HotSet {
    /// Of the present time since the last park.
    now: Vec<usize>,
    /// Of the time before, and where in it each block is.
    last: Vec<usize>,
    place: HashMap<usize, usize>,
    /// How far `last` has been handed out for reading ahead.
    ahead: usize,
}

impl HotSet {
    /// The guest is parked: the blocks accessed until now become the hot set. Without any, the
    /// previous set stays.
    pub(super) fn parked(&mut self) {
        self.ahead = 0;
        if self.now.is_empty() {
            return;
        }
        self.last = std::mem::take(&mut self.now);
        self.place = self.last.iter().enumerate().map(|(at, &block)| (block, at)).collect();
    }

    /// The guest uses `block`; returns at most `most` blocks to read ahead: those that followed
    /// it last time and have not been returned yet.
    pub(super) fn touched(&mut self, block: usize, most: usize) -> &[usize] {
        if self.now.len() < MOST {
            self.now.push(block);
        }
        let Some(&at) = self.place.get(&block) else { return &[] };
        let from = self.ahead.max(at + 1);
        let to = (at + 1 + most).min(self.last.len());
        if from >= to {
            return &[];
        }
        self.ahead = to;
        &self.last[from..to]
    }

    /// The hot set, first touched first.
    pub(super) fn order(&self) -> &[usize] {
        &self.last
    }

    /// Where in the hot set `block` is, if it is.
    pub(super) fn place(&self, block: usize) -> Option<usize> {
        self.place.get(&block).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ahead_follows_the_order_of_the_last_time() {
        let mut hot = HotSet::default();
        assert_eq!(hot.touched(5, 2), [0; 0]);
        for block in [9, 1, 7] {
            hot.touched(block, 2);
        }
        hot.parked();
        assert_eq!(hot.order(), [5, 9, 1, 7]);
        assert_eq!(hot.touched(5, 2), [9, 1]);
        // Given already, and what was not in it.
        assert_eq!(hot.touched(9, 1), [0; 0]);
        assert_eq!(hot.touched(100, 8), [0; 0]);
        assert_eq!(hot.touched(1, 8), [7]);
    }

    #[test]
    fn a_guest_that_slept_keeps_its_hot_set() {
        let mut hot = HotSet::default();
        hot.touched(3, 0);
        hot.parked();
        hot.parked();
        assert_eq!((hot.order(), hot.place(3), hot.place(4)), ([3].as_slice(), Some(0), None));
    }
}
