// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest has lent for a pass: blocks that it evacuated, which it gets back before it runs
//! out of memory, and at the end of each stage.

use super::guest_side::GuestSide;
use super::map::BlockMap;
use super::plan::spare;
use crate::units::{BLOCK_SIZE, Pages, usize_from};

/// The loan of one pass.
#[derive(Debug)]
pub struct Loan {
    /// What the guest had lent before the pass.
    before: Pages,
    /// Blocks that it evacuated and has not got back.
    blocks: usize,
    /// How many that may be.
    limit: usize,
}

impl Loan {
    /// Nothing is lent for this pass yet; what is lent already stays lent.
    pub fn new(guest: &dyn GuestSide) -> Self {
        Self { before: guest.lent(), blocks: 0, limit: 0 }
    }

    /// The guest can lend what `map` says it can spare, and `least` blocks in any case.
    pub fn set_limit(&mut self, map: &BlockMap, least: usize) {
        let spare = spare(map).unwrap_or_default().0 / BLOCK_SIZE;
        self.limit = usize_from(spare).max(least);
    }

    /// How many of `blocks` the guest can lend at once; returns what it has lent first if there is
    /// no room for as many as that.
    pub fn make_room(&mut self, blocks: usize, guest: &dyn GuestSide) -> usize {
        if self.blocks > 0 && self.blocks + blocks > self.limit {
            self.settle(guest);
        }
        blocks.min(self.limit).max(1)
    }

    /// The guest lent `blocks` more.
    pub fn add(&mut self, blocks: usize) {
        self.blocks += blocks;
    }

    /// The guest gets back what it has lent for the pass.
    pub fn settle(&mut self, guest: &dyn GuestSide) {
        guest.settle(self.before);
        self.blocks = 0;
    }
}
