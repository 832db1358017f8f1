// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The presets: the numbers that decisions use.

use std::time::Duration;

use mm::units::{BLOCK_SIZE, Bytes};

use super::host_level::HostLevel;
use crate::config::{PolicyConfig, PolicyPreset};

const MIB: u64 = 1 << 20;

/// The numbers of one policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Where they come from.
    pub preset: PolicyPreset,
    /// Guest memory that stays resident.
    pub floor: Bytes,
    /// Guest memory above this is reclaimed regardless of the host's level.
    pub ceiling: Option<Bytes>,
    /// The host is short of memory when less than this is available; a share of its memory if
    /// `None`.
    pub host_reserve: Option<Bytes>,
    /// That share, in per cent.
    pub host_reserve_percent: u64,
    /// Share of time in which some task of the host waits for memory, in per cent, from which it is
    /// tight, and short.
    pub stall_percent: [f64; 2],
    /// Memory that must stay available to the guest.
    pub guest_reserve: Bytes,
    /// Maximum inflation per round.
    pub step: Bytes,
    /// The host's level from which cold blocks are evicted.
    pub evicts_from: HostLevel,
    /// Maximum number of blocks on trial.
    pub at_once: usize,
    /// CPU limit for eviction, in percent of one CPU.
    pub cpu_percent: u64,
    /// Time between two rounds.
    pub interval: Duration,
}

impl Limits {
    /// The limits of `config` for a guest with `memory`.
    pub fn new(config: &PolicyConfig, memory: Bytes) -> Self {
        let dense = config.preset == PolicyPreset::Dense;
        let choose = |if_dense: u64, otherwise: u64| if dense { if_dense } else { otherwise };
        let of_mib = |mib: Option<u64>| mib.map(|mib| Bytes(mib.saturating_mul(MIB)));
        let floor = of_mib(config.floor_mib).unwrap_or(Bytes(memory.0 / choose(8, 2)));
        // A quarter or a tenth of guest memory, but not less than a kernel needs.
        let guest_reserve = Bytes((memory.0 / choose(10, 4)).max(choose(16, 32) * MIB));
        Self {
            preset: config.preset,
            floor: floor.min(memory),
            ceiling: of_mib(config.ceiling_mib),
            host_reserve: of_mib(config.host_reserve_mib),
            host_reserve_percent: choose(10, 5),
            stall_percent: if dense { [1.0, 5.0] } else { [5.0, 20.0] },
            guest_reserve,
            step: Bytes((memory.0 / 16).max(8 * MIB).next_multiple_of(BLOCK_SIZE)),
            evicts_from: if dense { HostLevel::Comfortable } else { HostLevel::Short },
            at_once: if dense { 32 } else { 8 },
            cpu_percent: config.cpu_percent.map_or(choose(10, 2), u64::from),
            interval: Duration::from_millis(config.interval_ms.into()),
        }
    }
}
