// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `memory.policy`: automatic reclaim and return of guest memory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rules::{Check, Faults};

/// Configuration of the memory policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// The preset.
    pub preset: PolicyPreset,
    /// Guest memory that always stays resident, in MiB; half of guest memory if absent, or an
    /// eighth with `dense`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_mib: Option<u64>,
    /// Guest memory above this size is reclaimed even when the host has plenty, in MiB; no such
    /// limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_mib: Option<u64>,
    /// The host is short of memory when less than this is available, in MiB; 5 % of its memory if
    /// absent, or 10 % with `dense`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_reserve_mib: Option<u64>,
    /// Limit on CPU time for compression and decompression, in percent of one CPU; 2 if absent, or
    /// 10 with `dense`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// Time between two decisions, in milliseconds.
    pub interval_ms: u32,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            preset: PolicyPreset::Off,
            floor_mib: None,
            ceiling_mib: None,
            host_reserve_mib: None,
            cpu_percent: None,
            interval_ms: 1000,
        }
    }
}

/// How eager a policy is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum PolicyPreset {
    /// Memory is reclaimed on request only.
    #[default]
    Off,
    /// Memory is reclaimed while the host is short of it, and returned when it is not.
    Gentle,
    /// As `gentle`, and the policy always compresses cold memory.
    Dense,
}

/// The rules of this section, for a guest of `size_mib`.
pub(super) fn rules(check: &Check<'_, Option<PolicyConfig>>, size_mib: u64, faults: &mut Faults) {
    let Some(policy) = check.section else { return };
    let host_mib = check.host.memory_mib;
    if let Some(floor) = policy.floor_mib.filter(|&floor| floor > size_mib) {
        let problem = format!("{floor} MiB: the guest has {size_mib} MiB");
        faults.add("memory.policy.floor_mib", problem);
    }
    if let (Some(floor), Some(ceiling)) = (policy.floor_mib, policy.ceiling_mib)
        && ceiling < floor
    {
        let problem = format!("{ceiling} MiB: below the floor of {floor} MiB");
        faults.add("memory.policy.ceiling_mib", problem);
    }
    if let Some(reserve) = policy.host_reserve_mib.filter(|&reserve| reserve > host_mib / 2) {
        let problem = format!("{reserve} MiB: give at most half of the host's {host_mib} MiB");
        faults.add("memory.policy.host_reserve_mib", problem);
    }
    if policy.cpu_percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
        faults.add("memory.policy.cpu_percent", "give 1 to 100");
    }
    if !(100..=60_000).contains(&policy.interval_ms) {
        faults.add("memory.policy.interval_ms", "give 100 to 60000");
    }
}
