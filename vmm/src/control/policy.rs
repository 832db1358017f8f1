// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the memory policy.

use std::sync::Arc;
use std::time::Duration;

use mm::units::{Pages, SaturatingInto};

use super::{Controller, failed};
use crate::api::policy::{PolicyAction, PolicyCounters, PolicyDecision, PolicyReply, PolicyStatus};
use crate::api::{Refusal, Reply};
use crate::config::{PolicyConfig, PolicyPreset};
use crate::pressure::{self, JournalEntry, Limits, MemoryPolicy};

impl Controller {
    pub(super) fn policy_action(&mut self, action: PolicyAction) -> Result<Reply, Refusal> {
        match action {
            PolicyAction::Get => Ok(PolicyReply(Box::new(self.policy_status())).into()),
            PolicyAction::Set(policy) => {
                self.configure(|config| config.memory.policy = Some(policy))?;
                if self.vm.is_some() {
                    self.apply_policy(policy)?;
                }
                Ok(Reply::Done)
            }
        }
    }

    /// Sets the machine's policy. A running policy continues with new limits.
    pub(super) fn apply_policy(&mut self, policy: PolicyConfig) -> Result<(), Refusal> {
        let limits = Limits::new(&policy, self.vm()?.ram().pages().bytes());
        if let Some(running) = &self.policy {
            running.set_limits(limits);
            return Ok(());
        }
        if policy.preset == PolicyPreset::Off {
            return Ok(());
        }
        // Without a pager there is still the balloon.
        let started = self.start_paging().map_err(|refusal| refusal.to_string());
        let paging = started.and_then(|()| {
            let parking = self.parking.as_ref().ok_or("there is no pager")?;
            Ok(Arc::clone(parking.paging()))
        });
        if let Err(why) = &paging {
            tracing::warn!("the memory policy cannot evict: {why}");
        }
        let target = self.balloon().map(|balloon| balloon.target_pages()).unwrap_or_default();
        let compactor = self.compactor()?;
        let (guest, work) = (compactor.guest().clone(), compactor.background());
        let machine = pressure::PolicyMachine { guest, target, paging, work };
        self.policy = Some(MemoryPolicy::start(machine, limits).map_err(failed)?);
        Ok(())
    }

    /// A client is about to set the balloon's target.
    pub(super) fn client_takes_balloon(&self, target: Pages) {
        if let Some(policy) = &self.policy {
            policy.client_set_target(target);
        }
    }

    fn policy_status(&self) -> PolicyStatus {
        let policy = self.config.memory.policy.unwrap_or_default();
        let Some(running) = &self.policy else {
            return PolicyStatus {
                policy,
                balloon_owner: "client".into(),
                host_level: "unknown".into(),
                guest_state: "unknown".into(),
                ..PolicyStatus::default()
            };
        };
        let now = running.status();
        let micros = |time: Duration| time.as_micros().saturating_u64();
        let has_balloon = self
            .vm
            .as_ref()
            .is_some_and(|vm| vm.balloon().is_some_and(|balloon| balloon.lock().is_active()));
        PolicyStatus {
            policy,
            active: policy.preset != PolicyPreset::Off,
            balloon_owner: match (has_balloon, now.balloon_held) {
                (false, _) => "none",
                (true, true) => "client",
                (true, false) => "policy",
            }
            .into(),
            balloon_target_bytes: now.target.unwrap_or_default().bytes().0,
            host_level: now.level.name().into(),
            host_available_bytes: now.host.available,
            host_reserve_bytes: now.host_reserve.0,
            host_stall_percent: now.host.some,
            guest_state: now.guest.name().into(),
            guest_available_bytes: now.figures.map(|told| told.available.0),
            resident_bytes: now.memory.resident.0,
            absent_bytes: now.absent.0,
            floor_bytes: now.limits.map_or(0, |limits| limits.floor.0),
            no_eviction: now.no_eviction.clone(),
            balloon_pause_rounds: now.backing_off[0],
            eviction_pause_rounds: now.backing_off[1],
            cpu_us: micros(now.spent),
            cpu_permille: micros(now.spent).saturating_mul(1000) / micros(now.age).max(1),
            cpu_limit_permille: now.limits.map_or(0, |limits| limits.cpu_percent * 10),
            counters: (&now).into(),
            decisions: now.journal.entries().map(Into::into).collect(),
        }
    }

    /// The policy's counters, for metrics; `None` without a policy.
    pub(super) fn policy_counters(&self) -> Option<PolicyCounters> {
        self.policy.as_ref().map(|policy| (&policy.status()).into())
    }
}

impl From<&pressure::PolicyStatus> for PolicyCounters {
    fn from(status: &pressure::PolicyStatus) -> Self {
        let (done, evictions) = (&status.counters, &status.evictions);
        Self {
            rounds: done.rounds,
            guest_hurt: done.guest_hurt,
            balloon_raised: done.balloon_raised,
            balloon_lowered: done.balloon_lowered,
            hints: done.hints,
            discards: done.discards,
            unparks: done.unparks,
            failures: done.failures,
            trials: evictions.trials,
            blocks_tried: evictions.tried,
            blocks_evicted: evictions.stored,
            blocks_returned: evictions.returned,
            blocks_unfit: evictions.unfit,
            blocks_relieved: evictions.relieved,
        }
    }
}

impl From<&JournalEntry> for PolicyDecision {
    fn from(entry: &JournalEntry) -> Self {
        let action = entry.decision.action;
        Self {
            number: entry.number,
            time_ms: entry.at.as_millis().saturating_u64(),
            action: action.name().into(),
            what: action.to_string(),
            reason: entry.decision.reason.clone(),
            failed: entry.failed.clone(),
        }
    }
}
