// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory in use, the last to be reclaimed: trials of cold blocks, and recompression of those that
//! have been parked for long.

use std::time::Duration;

use mm::paging::EvictionCosts;
use mm::units::{BLOCK_SIZE, usize_from};

use super::{Policy, mib};
use crate::pressure::host_level::HostLevel;
use crate::pressure::snapshot::{Action, Decision, PressureSnapshot};

/// Cost of recompressing a block, as a multiple of evicting it and bringing it back.
const REPACK_COST: u64 = 6;
/// Time within which recompression may spend what is earned.
const REPACK_AHEAD: Duration = Duration::from_secs(10);
/// Shortest and longest trials by the host's level: a host that is short cannot wait.
const TRIALS: [[Duration; 2]; 3] = [
    [Duration::from_secs(1), Duration::from_secs(30)],
    [Duration::from_secs(1), Duration::from_secs(10)],
    [Duration::from_millis(250), Duration::from_secs(1)],
];

impl Policy {
    /// Cold memory, and what has been parked for long, in turn: one trial can follow the other for as
    /// long as there are blocks to try. A host that is short has no time for recompression.
    pub(super) fn evict_or_repack(
        &mut self,
        now: &PressureSnapshot,
        decisions: &mut Vec<Decision>,
    ) {
        let repacks_first = self.tried && self.level() < HostLevel::Short;
        if repacks_first {
            self.repack(now, decisions);
        }
        self.evict(now, decisions);
        if !repacks_first {
            self.repack(now, decisions);
        }
        for decision in decisions {
            match decision.action {
                Action::Evict { .. } => self.tried = true,
                Action::Repack(_) => self.tried = false,
                _ => {}
            }
        }
    }

    /// Tries cold blocks, after everything that is cheaper.
    fn evict(&self, now: &PressureSnapshot, decisions: &mut Vec<Decision>) {
        let over = self.limits.ceiling.is_some_and(|ceiling| now.memory.resident > ceiling);
        if self.level() < self.limits.evicts_from && !over {
            return;
        }
        let taken = |decision: &Decision| match decision.action {
            Action::SetBalloon(target) => now.balloon.is_some_and(|now| target > now.target),
            Action::Unpark | Action::Repack(_) => true,
            _ => false,
        };
        // One action at a time, except on a host that is short of memory.
        if self.level() < HostLevel::Short && decisions.iter().any(taken) {
            return;
        }
        let Some(paging) = now.paging else { return };
        if paging.busy || self.evicting.holds() || paging.is_full() {
            return;
        }
        // A block that was not accessed for the break-even time is expected to stay unaccessed for
        // as long again. Scarce memory is worth more CPU time.
        let (worth, [shortest, longest]) = match self.level() {
            HostLevel::Comfortable => (1, TRIALS[0]),
            HostLevel::Tight => (2, TRIALS[1]),
            HostLevel::Short => (8, TRIALS[2]),
        };
        let bytes_per_us = paging.costs.bytes_per_us / worth;
        let pays = EvictionCosts { bytes_per_us, ..paging.costs }.break_even();
        let trial = pays.clamp(shortest, longest);
        let spare = now.memory.resident.saturating_sub(self.limits.floor).0 / BLOCK_SIZE;
        let paid = self.budget.blocks(&paging, trial, &self.limits);
        let blocks @ 1.. = usize_from(spare.min(self.limits.at_once as u64).min(paid)) else {
            return;
        };
        let reason = match (self.level(), over) {
            (HostLevel::Comfortable, false) => {
                "the policy always compresses cold memory".to_owned()
            }
            (HostLevel::Comfortable, true) => format!("{} resident", mib(now.memory.resident.0)),
            (level, _) => format!("the host is {}", level.name()),
        };
        decisions.push(Decision { action: Action::Evict { blocks, trial }, reason });
    }

    /// Recompresses blocks that have been parked for long, when nothing else moves memory.
    fn repack(&self, now: &PressureSnapshot, decisions: &mut Vec<Decision>) {
        let Some(paging) = now.paging.filter(|paging| !paging.busy) else { return };
        let blocks = paging.repackable.min(self.limits.at_once as u64);
        let blocks =
            blocks.min(self.budget.blocks(&paging, REPACK_AHEAD, &self.limits) / REPACK_COST);
        let moves = |decision: &Decision| {
            matches!(decision.action, Action::Evict { .. } | Action::Unpark | Action::Discard)
        };
        if self.level() < self.limits.evicts_from || decisions.iter().any(moves) {
            return;
        }
        if let blocks @ 1.. = usize_from(blocks) {
            let reason = format!("{} blocks have been parked for a minute", paging.repackable);
            decisions.push(Decision { action: Action::Repack(blocks), reason });
        }
    }
}
