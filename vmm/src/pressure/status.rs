// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reported state of the policy.

use std::time::Duration;

use mm::units::{Bytes, Pages};

use super::guest_state::GuestState;
use super::host_level::HostLevel;
use super::journal::Journal;
use super::limits::Limits;
use super::snapshot::{GuestFigures, MemoryUse};
use crate::host::memory_figures::HostFigures;

/// State and decisions of the policy.
#[derive(Debug, Clone, Default)]
pub struct PolicyStatus {
    /// The numbers that it decides by; `None` before the first round.
    pub limits: Option<Limits>,
    /// Whether a client holds the balloon.
    pub balloon_held: bool,
    /// The balloon's target.
    pub target: Option<Pages>,
    /// The host's figures, or its control group's.
    pub host: HostFigures,
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
    /// Guest memory that is parked or on probation.
    pub absent: Bytes,
    /// Why cold memory cannot be evicted, if so.
    pub no_eviction: Option<String>,
    /// Rounds without inflation, and without eviction, after it did harm.
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

/// Counters of the policy since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounters {
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the guest was short of memory.
    pub guest_hurt: u64,
    /// Number of times that the policy inflated the balloon.
    pub balloon_raised: u64,
    /// Number of times that the policy deflated the balloon.
    pub balloon_lowered: u64,
    /// Rounds of hints.
    pub hints: u64,
    /// Scans for ballooned pages that are still resident.
    pub discards: u64,
    /// Number of times that parked memory was brought back.
    pub unparks: u64,
    /// Decisions that could not be carried out.
    pub failures: u64,
}

/// Results of evictions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvictionCounters {
    /// Rounds of probation.
    pub trials: u64,
    /// Blocks taken out on trial.
    pub tried: u64,
    /// Blocks on probation that were then compressed.
    pub stored: u64,
    /// Blocks on probation that the guest accessed.
    pub returned: u64,
    /// Of those, not fit to leave: pinned, of small pages, not compressible.
    pub unfit: u64,
    /// Blocks evicted at once, in whole or in part, because the host was short.
    pub relieved: u64,
}
