// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast memory policy`: the memory policy and its last decisions.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::compaction::read;
use super::error::CliError;
use super::target::Target;
use super::values::SizeMib;
use crate::api::policy::PolicyStatus;
use crate::config::{PolicyConfig, PolicyPreset};

/// Decisions that are printed.
const SHOWN: usize = 10;

/// `ballast memory policy`.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// Set this policy; without it, print the state and decisions of the current policy
    preset: Option<PolicyPreset>,
    /// Guest memory that always stays resident
    #[arg(long, value_name = "SIZE", requires = "preset")]
    floor: Option<SizeMib>,
    /// Reclaim guest memory above this size even when the host has plenty
    #[arg(long, value_name = "SIZE", requires = "preset")]
    ceiling: Option<SizeMib>,
    /// The host is short of memory when less than this is available
    #[arg(long, value_name = "SIZE", requires = "preset")]
    host_reserve: Option<SizeMib>,
    /// CPU limit for eviction, in percent of one CPU
    #[arg(long, value_name = "N", requires = "preset")]
    cpu_percent: Option<u8>,
    /// Time between two decisions, in milliseconds
    #[arg(long, value_name = "MS", requires = "preset")]
    interval: Option<u32>,
    #[command(flatten)]
    target: Target,
}

impl PolicyArgs {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        let Some(preset) = self.preset else {
            let status: PolicyStatus = read(self.target.get("/memory/policy")?)?;
            return Ok(out.write_all(text(&status).as_bytes())?);
        };
        let mib = |size: Option<SizeMib>| size.map(|size| size.0);
        let usual = PolicyConfig::default();
        let policy = PolicyConfig {
            preset,
            floor_mib: mib(self.floor),
            ceiling_mib: mib(self.ceiling),
            host_reserve_mib: mib(self.host_reserve),
            cpu_percent: self.cpu_percent,
            interval_ms: self.interval.unwrap_or(usual.interval_ms),
        };
        self.target.put("/memory/policy", &json!(policy))?;
        Ok(())
    }
}

fn text(status: &PolicyStatus) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let known = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| format!("{} MiB", b >> 20));
    let mut text = format!("policy: {}\n", json!(status.policy));
    if !status.active {
        return text;
    }
    let stalls = match status.host_stall_percent {
        Some(percent) => format!("tasks stalled on memory for {percent} % of the last ten seconds"),
        None => "memory stalls unknown: the kernel has no PSI".into(),
    };
    text += &format!(
        "host: {}, {} available, reserve {} MiB; {stalls}\n",
        status.host_level,
        known(status.host_available_bytes),
        mib(status.host_reserve_bytes),
    );
    text += &format!(
        "guest: {}, {} available; {} MiB resident, {} MiB parked, floor {} MiB\n",
        status.guest_state,
        known(status.guest_available_bytes),
        mib(status.resident_bytes),
        mib(status.absent_bytes),
        mib(status.floor_bytes),
    );
    text += &format!(
        "balloon: target {} MiB, set by {}\n",
        mib(status.balloon_target_bytes),
        status.balloon_owner
    );
    text += &format!(
        "eviction: {} blocks of {} tried; {} of {} per mille of a processor\n",
        status.counters.blocks_evicted,
        status.counters.blocks_tried,
        status.cpu_permille,
        status.cpu_limit_permille
    );
    if let Some(why) = &status.no_eviction {
        text += &format!("eviction stopped: {why}\n");
    }
    let first = status.decisions.len().saturating_sub(SHOWN);
    for decision in &status.decisions[first..] {
        text += &format!("{:>6}  {}: {}", decision.number, decision.what, decision.reason);
        if let Some(why) = &decision.failed {
            text += &format!(" (failed: {why})");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::policy::PolicyDecision;

    #[test]
    fn a_status_tells_both_sides_and_the_last_decisions() {
        let decision = |number| PolicyDecision {
            number,
            what: format!("balloon to {number} MiB"),
            reason: "the host is short".into(),
            failed: (number == 20).then(|| "no driver".into()),
            ..PolicyDecision::default()
        };
        let status = PolicyStatus {
            policy: PolicyConfig { preset: PolicyPreset::Dense, ..PolicyConfig::default() },
            active: true,
            host_level: "short".into(),
            host_available_bytes: Some(100 << 20),
            guest_state: "easy".into(),
            decisions: (1..=20).map(decision).collect(),
            ..PolicyStatus::default()
        };
        let text = text(&status);
        assert!(text.contains("\"preset\":\"dense\""), "{text}");
        assert!(text.contains("host: short, 100 MiB available"), "{text}");
        assert!(text.contains("the kernel has no PSI"), "{text}");
        assert!(text.contains("guest: easy, unknown available"), "{text}");
        assert!(!text.contains("    10  ") && text.contains("    11  balloon to 11 MiB"), "{text}");
        assert!(text.ends_with("(failed: no driver)\n"), "{text}");
    }
}
