// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest evacuates blocks: sparse ones, and full ones whose pages fill the gaps of others.

use super::{CarryOut, PassProgress};
use crate::blocks::plan::{PlanAction, PlanStep};
use crate::blocks::report::StepResult;
use crate::guest_ram::GuestRamError;
use crate::units::BlockId;

/// Has blocks evacuated.
#[derive(Debug)]
pub(in crate::blocks) struct EvacuateStage {
    /// Whether the guest waits for busy pages.
    sync: bool,
    /// Requests in a row that the guest did not answer.
    unanswered: u32,
}

impl EvacuateStage {
    pub(in crate::blocks) fn new(sync: bool) -> Self {
        Self { sync, unanswered: 0 }
    }
}

impl CarryOut for EvacuateStage {
    fn take(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<usize, GuestRamError> {
        let wanted = steps.iter().map_while(|step| match step.action {
            PlanAction::Evacuate(id) => Some(id),
            _ => None,
        });
        let mut blocks: Vec<BlockId> = wanted.take(progress.policy.evacuate_at_once).collect();
        blocks.truncate(progress.loan.make_room(blocks.len(), progress.guest));
        if blocks.is_empty() {
            return Ok(1);
        }
        // Each request to a guest that does not reply would cost a full timeout.
        let answer = if self.unanswered >= progress.policy.unanswered {
            None
        } else {
            let patience = progress.time_left();
            progress.guest.evacuate(&blocks, self.sync, patience, progress.watch.cancel)
        };
        self.unanswered = if answer.is_none() { self.unanswered + 1 } else { 0 };
        if answer.is_none() {
            // It may do so later.
            progress.map_read = None;
        }
        for (index, id) in blocks.iter().enumerate() {
            let given_up = answer.as_ref().and_then(|a| a.get(index)).copied().unwrap_or(false);
            let used = progress.map.get(*id).map(|b| b.used().bytes()).unwrap_or_default();
            let result = if given_up {
                progress.loan.add(1);
                StepResult::Done(used)
            } else {
                progress.stuck.insert(*id);
                StepResult::Busy
            };
            progress.tallies.evacuate.note(result);
        }
        Ok(blocks.len())
    }
}
