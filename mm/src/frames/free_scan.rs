// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction's scanner for free frames.

use super::events::add;
use super::ids::{BLOCK_FRAMES, FrameBlock, FrameId, Order};
use super::migrate::Targets;
use super::pageblock::Skip;
use super::pool_core::PoolCore;
use super::zone::Zone;

/// Free frames taken as destinations, and the scanner that finds them.
pub(super) struct FreeScanner {
    held: Vec<FrameId>,
    /// The block above the next one to look at.
    above: FrameBlock,
    /// Never goes below this block; moved up by the other scanner.
    floor: FrameBlock,
    /// Units of this order and above are the goal of compaction and are not broken up.
    keep: Order,
    ignore_skip: bool,
}

impl FreeScanner {
    /// A scanner that goes down from the block below `above` and takes units below order `keep`.
    pub(super) fn new(
        above: FrameBlock,
        floor: FrameBlock,
        keep: Order,
        ignore_skip: bool,
    ) -> Self {
        Self { held: Vec::with_capacity(BLOCK_FRAMES as usize), above, floor, keep, ignore_skip }
    }

    /// The block above the next one to look at.
    pub(super) fn above(&self) -> FrameBlock {
        self.above
    }

    /// Keeps the scanner above `block`, where the other scanner is.
    pub(super) fn set_floor(&mut self, block: FrameBlock) {
        self.floor = block;
    }

    /// Whether it has no destination in hand.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Gives all unused destinations back; returns the block from which the next run's scanner
    /// should go down, so that it meets them again.
    pub(super) fn release(&mut self, core: &PoolCore, zone: &mut Zone) -> FrameBlock {
        let mut above = self.above;
        for frame in self.held.drain(..) {
            above = above.max(frame.block().next());
            zone.release_held(core.tables(), frame);
        }
        above
    }

    fn refill(&mut self, core: &PoolCore) {
        while self.held.is_empty() && self.above.index() > self.floor.index() + 1 {
            let block = FrameBlock::new(self.above.index() - 1);
            self.above = block;
            if !self.ignore_skip && core.blocks().is_skipped(block, Skip::Target) {
                continue;
            }
            if core.blocks().type_of(block).takes_movable() {
                self.take_block(core, block);
            }
            if self.held.is_empty() {
                core.blocks().set_skip(block, Skip::Target);
            }
        }
    }

    /// Takes all small free units of a block.
    fn take_block(&mut self, core: &PoolCore, block: FrameBlock) {
        let mut zone = core.zone();
        // The type may have changed before the lock was taken.
        if !core.blocks().type_of(block).takes_movable() {
            return;
        }
        zone.take_held_in(core.tables(), block, self.keep, &mut self.held);
        drop(zone);
        // Lowest frame last, so that a block fills from its start.
        self.held.reverse();
        add(&core.events().free_taken, self.held.len() as u64);
    }
}

impl Targets for FreeScanner {
    fn next(&mut self, core: &PoolCore) -> Option<FrameId> {
        if self.held.is_empty() {
            self.refill(core);
        }
        self.held.pop()
    }

    fn give_back(&mut self, frame: FrameId) {
        self.held.push(frame);
    }
}
