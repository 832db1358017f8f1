// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction's state between runs: where its scanners stopped, and how long to defer it after a
//! failure.

use super::ids::{BLOCK_FRAMES, FrameBlock, FrameId, Order};
use super::movable::MigrateMode;

/// Where the scanners stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanCursor {
    /// The scanner for movable frames, async and otherwise: async passes over more.
    sources: [FrameId; 2],
    /// One past the block where the scanner for free frames goes on.
    targets: FrameBlock,
    blocks: FrameBlock,
}

impl ScanCursor {
    pub(super) fn new(frames: u32) -> Self {
        let blocks = FrameBlock::new(frames.div_ceil(BLOCK_FRAMES));
        Self { sources: [FrameId::new(0); 2], targets: blocks, blocks }
    }

    /// Where the scanner for movable frames goes on.
    pub(super) fn source(&self, mode: MigrateMode) -> FrameId {
        self.sources[Self::track(mode)]
    }

    /// One past the block where the scanner for free frames goes on.
    pub(super) fn targets(&self) -> FrameBlock {
        self.targets
    }

    /// One past the last block of the pool.
    pub(super) fn blocks(&self) -> FrameBlock {
        self.blocks
    }

    fn track(mode: MigrateMode) -> usize {
        usize::from(mode != MigrateMode::Async)
    }

    /// The scanners of a run in `mode` stopped at `source` and below `targets`. The other track
    /// stays: async passes over blocks that a patient run must still look at.
    pub(super) fn advance(&mut self, mode: MigrateMode, source: FrameId, targets: FrameBlock) {
        self.targets = targets;
        self.sources[Self::track(mode)] = source;
    }

    /// Both scanners start from their ends again.
    pub(super) fn reset(&mut self) {
        self.sources = [FrameId::new(0); 2];
        self.targets = self.blocks;
    }
}

/// Defers compaction after a failure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deferral {
    considered: u32,
    shift: u32,
    /// The smallest order that failed.
    order: Option<Order>,
}

impl Deferral {
    const MAX_SHIFT: u32 = 6;

    /// Compaction for `order` finished without success.
    pub(super) fn failed(&mut self, order: Order) {
        self.considered = 0;
        self.shift = (self.shift + 1).min(Self::MAX_SHIFT);
        self.order = Some(self.order.map_or(order, |o| o.min(order)));
    }

    /// An allocation of `order` succeeded after compaction.
    pub(super) fn succeeded(&mut self, order: Order) {
        self.considered = 0;
        self.shift = 0;
        if self.order.is_some_and(|o| o <= order) {
            self.order = order.up();
        }
    }

    /// Whether to defer this request. Counts it.
    pub(super) fn defers(&mut self, order: Order) -> bool {
        if self.order.is_none_or(|o| order < o) {
            return false;
        }
        self.considered += 1;
        if self.considered >= 1 << self.shift {
            self.considered = 1 << self.shift;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deferral_doubles_and_resets() {
        let mut d = Deferral::default();
        let order = Order::new(3).unwrap();
        assert!(!d.defers(order), "nothing failed yet");
        for round in 1..10u32 {
            d.failed(order);
            let skipped = (0..1000).take_while(|_| d.defers(order)).count();
            assert_eq!(skipped, (1 << round.min(6)) - 1);
        }
        assert!(!d.defers(Order::ZERO), "smaller orders are not put off");
        d.succeeded(order);
        assert!(!d.defers(order));
    }
}
