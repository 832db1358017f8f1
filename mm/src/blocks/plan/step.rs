// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One thing to do in a pass, and what it should bring and cost.

use std::time::Duration;

use crate::units::{BlockId, Bytes};

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlanAction {
    /// Discard the block's wasted pages (ballooned but present): all of them, or some.
    Discard(BlockId),
    /// Make the block a huge page.
    Collapse(BlockId),
    /// Ask the guest to evacuate the block and give it up whole.
    Evacuate(BlockId),
    /// Make the block a huge page, and populate its absent pages.
    Back(BlockId),
    /// Exchange single pages of the balloon for blocks, borrow blocks of the guest's free memory,
    /// then return them.
    Gather(GatherOrder),
}

impl PlanAction {
    /// The block to act on; `None` for an action on all of memory.
    pub fn block(self) -> Option<BlockId> {
        match self {
            Self::Discard(id) | Self::Collapse(id) | Self::Evacuate(id) | Self::Back(id) => {
                Some(id)
            }
            Self::Gather(_) => None,
        }
    }
}

/// What a guest is to gather, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatherOrder {
    /// To borrow on top of the balloon's target.
    pub lend: u32,
    /// To replace single pages of the balloon, which the guest gets back first.
    pub exchange: u32,
}

/// An action with what it should bring and cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanStep {
    /// What to do.
    pub action: PlanAction,
    /// Bytes that the host has free afterwards.
    pub frees: Bytes,
    /// Bytes that are in huge pages afterwards.
    pub makes_huge: Bytes,
    /// Bytes to be copied.
    pub copies: Bytes,
    /// Time that it takes.
    pub takes: Duration,
}

impl PlanStep {
    /// Gain for each nanosecond of cost, in 1/1024 bytes. A byte freed counts twice a byte made
    /// huge: free memory serves every process on the host.
    pub(super) fn merit(&self) -> u128 {
        let gain = 2 * u128::from(self.frees.0) + u128::from(self.makes_huge.0);
        gain * 1024 / self.takes.as_nanos().max(1)
    }
}
