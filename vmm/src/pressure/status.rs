// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the policy shows of itself.

use std::time::Duration;

use mm::units::{Bytes, Pages};

use super::guest_state::GuestState;
use super::host::HostMemory;
use super::host_level::HostLevel;
use super::journal::Journal;
use super::limits::Limits;
use super::snapshot::{GuestFigures, MemoryUse};

/// What the policy sees and has done.
#[derive(Debug, Clone, Default)]
pub struct PolicyStatus {
    /// The numbers that it decides by; `None` before the first round.
    pub limits: Option<Limits>,
    /// Whether a client holds the balloon.
    pub balloon_held: bool,
    /// The balloon's target.
    pub target: Option<Pages>,
    /// The host's figures, or its control group's.
    pub host: HostMemory,
    /// Below this the host is short.
    pub host_reserve: Bytes,
    /// How the host is off.
    pub level: HostLevel,
    /// How the guest is off.
    pub guest: GuestState,
    /// The guest's figures, if it sends any.
    pub figures: Option<GuestFigures>,
    /// Where guest memory is.
    pub memory: MemoryUse,
    /// Guest memory that is parked or on trial.
    pub absent: Bytes,
    /// Why cold memory cannot be evicted, if so.
    pub no_eviction: Option<String>,
    /// Rounds for which nothing is taken by the balloon, and by eviction, since that did harm.
    pub backing_off: [u32; 2],
    /// Processor time for eviction since the policy started, and how long ago that was.
    pub spent: Duration,
    /// Time since the policy started.
    pub age: Duration,
    /// What was done.
    pub counters: PolicyCounters,
    /// What evictions came to.
    pub evictions: EvictionCounters,
    /// The last decisions.
    pub journal: Journal,
}

/// What a policy has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounters {
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the guest was hurt.
    pub guest_hurt: u64,
    /// Times that the balloon was made larger.
    pub balloon_raised: u64,
    /// Times that it was made smaller.
    pub balloon_lowered: u64,
    /// Rounds of hints.
    pub hints: u64,
    /// Searches for resident pages of the balloon.
    pub discards: u64,
    /// Times that parked memory was brought back.
    pub unparks: u64,
    /// Decisions that could not be carried out.
    pub failures: u64,
}

/// What evictions have come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvictionCounters {
    /// Rounds of trials.
    pub trials: u64,
    /// Blocks taken out on trial.
    pub tried: u64,
    /// Of those, compressed.
    pub stored: u64,
    /// Of those, wanted back by the guest.
    pub returned: u64,
    /// Of those, not fit to leave: pinned, of small pages, not compressible.
    pub unfit: u64,
}
