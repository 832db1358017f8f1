// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A compaction pass: stage by stage, read the map, plan, carry the plan out; at the end read the map
//! again.
//!
//! Blocks that the guest gives up for a pass are returned to it at the end of their stage, or as
//! soon as it has lent what it can spare. By then the host has freed them; they cost it nothing
//! until they are used. The driver takes single pages of its balloon back before blocks, so that
//! blocks replace them.
//!
//! Between steps a pass can be cancelled, and it ends when its time is used up.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tracing::debug;

use super::guest_side::GuestSide;
use super::loan::Loan;
use super::map::{BlockMap, Totals};
use super::plan::plan;
use super::policy::{Costs, Goals, PassLimits, PassPolicy};
use super::report::{EndReason, PassReport, StageTime, Tallies};
use super::stage::Stage;
use super::stages::{
    CarryOut, EvacuateStage, GatherStage, HostStage, PassProgress, Spending, Watch,
};
use crate::guest_ram::{GuestRam, GuestRamError};

/// A pass over one guest's memory.
pub struct Pass<'a> {
    /// The memory.
    pub ram: &'a GuestRam,
    /// The devices.
    pub guest: &'a dyn GuestSide,
    /// What it is for.
    pub goals: Goals,
    /// What it may spend.
    pub limits: PassLimits,
    /// What things cost.
    pub costs: Costs,
    /// Its policy: how much effort it spends on each step.
    pub policy: PassPolicy,
}

impl<'a> Pass<'a> {
    /// A pass with the usual costs and policy.
    pub fn new(
        ram: &'a GuestRam,
        guest: &'a dyn GuestSide,
        goals: Goals,
        limits: PassLimits,
    ) -> Self {
        Self { ram, guest, goals, limits, costs: Costs::default(), policy: PassPolicy::default() }
    }

    /// Runs the pass in this thread. `cancel` may be set from another; `progress` is called with the
    /// steps done and planned.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or the kernel refuses what it should not; completed steps are
    /// kept.
    pub fn run(
        &self,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<PassReport, GuestRamError> {
        let goals = self.possible_goals();
        let mut under_way = PassProgress {
            ram: self.ram,
            guest: self.guest,
            policy: self.policy,
            watch: Watch { cancel, progress },
            map: BlockMap::default(),
            map_read: None,
            spending: Spending::new(self.limits),
            loan: Loan::new(self.guest),
            tallies: Tallies::default(),
            stuck: BTreeSet::new(),
        };
        let (mut before, mut end, mut stages) = (None, EndReason::Finished, Vec::new());
        for stage in goals.stages() {
            let begin = Instant::now();
            let mut time =
                StageTime { stage, rounds: 0, took: Duration::ZERO, settling: Duration::ZERO };
            let ended = self.rounds(&goals, &mut under_way, &mut time, &mut before);
            time.took = begin.elapsed();
            debug!(?time, "stage of a pass");
            stages.push(time);
            end = ended?;
            if end != EndReason::Finished {
                break;
            }
        }
        let before = before.unwrap_or_default();
        let PassProgress { spending, tallies, .. } = under_way;
        let after = match spending.planned {
            0 => before,
            _ => BlockMap::read(self.ram, &self.guest.holdings())?.totals(),
        };
        let (planned, left_out, took) = (spending.planned, spending.left_out, spending.elapsed());
        Ok(PassReport { before, after, tallies, planned, left_out, took, stages, end })
    }

    /// The goals that this memory allows.
    fn possible_goals(&self) -> Goals {
        let mut goals = self.goals.clone();
        if !self.ram.may_be_huge() {
            goals.collapse_from = None;
            goals.back = false;
            goals.back_gpu = false;
        }
        goals
    }

    /// Reads the map for `stage`, unless nothing has changed since it was read a moment ago.
    fn read_map(&self, stage: Stage, progress: &mut PassProgress<'_>) -> Result<(), GuestRamError> {
        if progress.map_read.is_some_and(|read| read.elapsed() < self.policy.map_age) {
            progress.map.leave_out_none();
            return Ok(());
        }
        if stage.needs_free() {
            self.guest.ask_free(self.policy.free_patience);
        }
        progress.map = BlockMap::read(self.ram, &self.guest.holdings())?;
        progress.map_read = Some(Instant::now());
        Ok(())
    }

    /// Runs `time.stage`, and repeats it while that helps.
    fn rounds(
        &self,
        goals: &Goals,
        progress: &mut PassProgress<'_>,
        time: &mut StageTime,
        before: &mut Option<Totals>,
    ) -> Result<EndReason, GuestRamError> {
        let stage = time.stage;
        let mut carry_out: Box<dyn CarryOut> = match stage {
            Stage::Gather => Box::new(GatherStage),
            Stage::Evacuate { sync } => Box::new(EvacuateStage::new(sync)),
            Stage::Squeeze => Box::new(EvacuateStage::new(false)),
            Stage::Host => Box::new(HostStage::default()),
        };
        for round in 0..self.policy.rounds(stage) {
            time.rounds = round + 1;
            self.read_map(stage, progress)?;
            before.get_or_insert_with(|| progress.map.totals());
            if round > 0 {
                // A failed step is not tried again.
                progress.stuck.iter().for_each(|id| progress.map.leave_out(*id));
            }
            let plan = plan(&progress.map, goals, stage, progress.spending.left(), &self.costs);
            progress.spending.spend(&plan);
            progress.loan.set_limit(&progress.map, self.policy.evacuate_at_once);
            let (given_up, busy) = (progress.tallies.given_up(), progress.tallies.gather.busy);
            let (stuck, done_before) = (progress.stuck.len(), progress.tallies.changes());
            debug!(?stage, round, steps = plan.steps.len(), totals = ?progress.map.totals(), "plan");
            let ended = carry_out.carry_out(&plan.steps, progress);
            if progress.tallies.changes() > done_before {
                progress.map_read = None;
            }
            // With any result, the guest gets back what it lent.
            if stage.is_of_guest() {
                let begin = Instant::now();
                progress.loan.settle(self.guest);
                time.settling += begin.elapsed();
            }
            // A guest that did not lend all that was planned has reached its limit. Instead of blocks
            // that were found stuck, such as the kernel's own at the top of memory, others can move.
            let others = stage == Stage::Squeeze && progress.stuck.len() > stuck;
            let helped = progress.tallies.given_up() > given_up || others;
            match ended? {
                EndReason::Finished if helped && progress.tallies.gather.busy == busy => {}
                end => return Ok(end),
            }
        }
        Ok(EndReason::Finished)
    }
}

#[cfg(test)]
mod tests;
