// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Inputs of decisions, and actions: plain values.

use std::fmt;
use std::time::Duration;

use crate::host::memory_figures::HostFigures;
use mm::paging::EvictionCosts;
use mm::units::{BLOCK_SIZE, Bytes, Pages};

/// A machine and its host at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PressureSnapshot {
    /// Time since the policy started.
    pub now: Duration,
    /// The host, or the control group that this process is in, whichever has less.
    pub host: HostFigures,
    /// Where guest memory is.
    pub memory: MemoryUse,
    /// The guest's own figures; `None` if it sends none, or none lately.
    pub guest: Option<GuestFigures>,
    /// The balloon; `None` without an active driver.
    pub balloon: Option<BalloonUse>,
    /// The pager; `None` where memory cannot be parked.
    pub paging: Option<PagingUse>,
}

/// Where guest memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// All of it.
    pub total: Bytes,
    /// In host memory.
    pub resident: Bytes,
}

/// The guest's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestFigures {
    /// When it did, since the policy started.
    pub at: Duration,
    /// Memory that no one uses.
    pub free: Bytes,
    /// Memory that a new workload could have, page cache included.
    pub available: Bytes,
    /// Allocations that had to wait for reclaim, since it booted.
    pub stalls: u64,
    /// Page faults that read from a disk, since it booted.
    pub major_faults: u64,
    /// Bytes swapped in since it booted.
    pub swapped_in: u64,
    /// Processes killed by the OOM killer since it booted.
    pub kills: u64,
}

/// The balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BalloonUse {
    /// The current target.
    pub target: Pages,
    /// What it has given.
    pub given: Pages,
    /// Whether the guest can be asked for hints at its free pages.
    pub hints: bool,
}

/// The pager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PagingUse {
    /// Parked guest memory.
    pub absent: Bytes,
    /// Blocks brought back from the pool on access.
    pub touched_blocks: u64,
    /// CPU time spent on evicting and bringing back.
    pub spent: Duration,
    /// Measured cost and gain of evicting a block and bringing it back.
    pub costs: EvictionCosts,
    /// Size and limit of the pool.
    pub pool: [Bytes; 2],
    /// Whether blocks are on trial, or memory is otherwise being moved.
    pub busy: bool,
    /// Blocks that have been parked long enough for recompression.
    pub repackable: u64,
}

impl PagingUse {
    /// CPU time to evict a block and bring it back.
    pub(super) fn block_cost(&self) -> Duration {
        self.costs.evict.saturating_add(self.costs.fill)
    }

    /// Whether the pool has no room for another block or two.
    pub(super) fn is_full(&self) -> bool {
        let [used, limit] = self.pool;
        used.0.saturating_add(2 * BLOCK_SIZE) > limit.0
    }
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Discard ballooned pages that are still resident.
    Discard,
    /// Ask the guest for free page hints, and discard those pages.
    Hint,
    /// Set the balloon's target.
    SetBalloon(Pages),
    /// Take this many blocks out on trial, and compress those that are not accessed within the
    /// time.
    Evict {
        /// Most blocks to try.
        blocks: usize,
        /// How long they must not be touched.
        trial: Duration,
    },
    /// Recompress at most this many blocks.
    Repack(usize),
    /// Bring parked memory back.
    Unpark,
}

impl Action {
    /// Its name in the API and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Discard => "discard",
            Self::Hint => "hint",
            Self::SetBalloon(_) => "balloon",
            Self::Evict { .. } => "evict",
            Self::Repack(_) => "repack",
            Self::Unpark => "unpark",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discard => write!(f, "discard resident balloon pages"),
            Self::Hint => write!(f, "ask the guest for free page hints"),
            Self::SetBalloon(target) => write!(f, "balloon to {} MiB", target.bytes().as_mib()),
            Self::Evict { blocks, trial } => {
                write!(f, "try {blocks} blocks for {} ms", trial.as_millis())
            }
            Self::Repack(blocks) => write!(f, "recompress {blocks} parked blocks"),
            Self::Unpark => write!(f, "bring parked memory back"),
        }
    }
}

/// Something to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub action: Action,
    /// Why, for people.
    pub reason: String,
}
