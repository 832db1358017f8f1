// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on compaction passes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mm::blocks::map::{BlockMap, Totals};
use mm::blocks::policy::{Goals, PassLimits};
use mm::blocks::report::{EndReason, PassReport, StageTime, StepTally};
use mm::blocks::stage::Stage;
use mm::layout::MemoryLayout;
use mm::units::{BLOCK_SIZE, Bytes, GuestRange, SaturatingInto};
use vm_memory::GuestAddress;

use super::{Controller, failed};
use crate::api::channel::ReplySender;
use crate::api::compaction::{
    Compact, CompactReport, CompactStatus, CompactionAction, CompactionReply, MemoryTotals,
    PassEnd, PassStage, Scope, StageReport, StepCounts,
};
use crate::api::{Refusal, Reply};
use crate::compactor::{Compactor, LiveGuest, PassJob, PassSchedule};
use crate::config::CompactionConfig;

impl Controller {
    pub(super) fn compaction_action(&mut self, action: CompactionAction, reply: ReplySender) {
        match action {
            CompactionAction::Compact(wanted) => self.compact(&wanted, reply),
            CompactionAction::Get => reply.send(self.compaction_status()),
            CompactionAction::Cancel => reply.send(self.cancel_compaction()),
        }
    }

    /// Starts a pass; the reply is sent at its end or, without `wait`, immediately.
    fn compact(&mut self, wanted: &Compact, answer: ReplySender) {
        let job = match self.vm() {
            Ok(vm) => job(wanted, vm.ram().layout()).map_err(failed),
            Err(refusal) => Err(refusal),
        };
        let prepared = job.and_then(|job| Ok((job, self.compactor()?)));
        let (job, compactor) = match prepared {
            Ok(ready) => ready,
            Err(refusal) => return answer.send(Err(refusal)),
        };
        let (reply, at_the_end) = once(answer);
        let waits = wanted.wait;
        let when_done = Box::new(move |result: Result<PassReport, _>| {
            if waits {
                let report =
                    result.map(|report| CompactionReply::Report(Box::new((&report).into())));
                at_the_end(report.map(Reply::Compaction).map_err(failed));
            }
        });
        match compactor.submit(job, when_done) {
            Err(refused) => reply(Err(failed(refused))),
            Ok(()) if !waits => reply(Ok(Reply::Done)),
            Ok(()) => {}
        }
    }

    fn compaction_status(&mut self) -> Result<Reply, Refusal> {
        Ok(CompactionReply::Status(Box::new(status(self.compactor()?))).into())
    }

    pub(super) fn cancel_compaction(&mut self) -> Result<Reply, Refusal> {
        self.compactor()?.cancel();
        Ok(Reply::Done)
    }

    /// Replies with the result of `look` on guest memory, computed on the page-table walker's
    /// thread.
    pub(super) fn walk(
        &mut self,
        reply: ReplySender,
        look: impl FnOnce(&LiveGuest) -> Result<Reply, Refusal> + Send + 'static,
    ) {
        let compactor = match self.compactor() {
            Ok(compactor) => compactor,
            Err(refusal) => return reply.send(Err(refusal)),
        };
        let (here, there) = once(reply);
        if let Err(refused) = compactor.walk(move |guest| there(look(guest))) {
            here(Err(failed(refused)));
        }
    }

    /// Replies with the result of `look` on the block map; see [`walk`](Self::walk).
    pub(super) fn with_map(
        &mut self,
        reply: ReplySender,
        look: impl FnOnce(&BlockMap) -> Result<Reply, Refusal> + Send + 'static,
    ) {
        self.walk(reply, |guest| look(&guest.map().map_err(failed)?));
    }

    /// The compactor, whose thread starts on first use.
    pub(super) fn compactor(&mut self) -> Result<&Compactor, Refusal> {
        if self.compactor.is_none() {
            let vm = self.vm()?;
            let gpu = vm.screens().map(|screens| screens.gpu.clone());
            let guest = LiveGuest::new(vm.ram().clone(), vm.balloon().cloned(), gpu);
            let schedule = self.config.memory.compaction.map(pass_schedule);
            self.compactor = Some(Compactor::start(guest, schedule).map_err(failed)?);
        }
        self.compactor.as_ref().ok_or(Refusal::BeforeStart)
    }
}

/// Two senders for one reply, of which the first one used counts: for a reply from another thread,
/// or from here if that thread cannot take the job.
fn once(reply: ReplySender) -> (impl Fn(ReplyOrRefusal), impl Fn(ReplyOrRefusal) + Send + 'static) {
    let reply = Arc::new(Mutex::new(Some(reply)));
    let way = |reply: Arc<Mutex<Option<ReplySender>>>| {
        move |result| {
            if let Some(reply) = super::lock(&reply).take() {
                reply.send(result);
            }
        }
    };
    (way(Arc::clone(&reply)), way(reply))
}

/// What is replied.
type ReplyOrRefusal = Result<Reply, Refusal>;

fn pass_schedule(config: CompactionConfig) -> PassSchedule {
    let stall = Duration::from_millis(config.stall_ms.into());
    PassSchedule {
        huge_percent: config.huge_percent,
        every: Duration::from_secs(config.interval_s.into()),
        only_idle: config.only_idle,
        stall: (!stall.is_zero()).then_some(stall),
        limits: PassLimits {
            time: Duration::from_millis(config.budget_ms.into()),
            ..PassLimits::UNLIMITED
        },
    }
}

fn status(compactor: &Compactor) -> CompactStatus {
    let progress = compactor.progress();
    CompactStatus {
        running: progress.running,
        done: progress.done as u64,
        planned: progress.planned as u64,
        last: compactor.last_report().as_ref().map(CompactReport::from),
    }
}

/// Why a requested pass is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum CompactFault {
    /// Start and length go with a range, and only with it.
    #[error("start and blocks go with scope \"range\", which requires both.")]
    RangeFields,
    /// The range is not blocks of RAM.
    #[error("start {start:#x} and blocks {blocks} are not a range of guest memory blocks.")]
    NotRam {
        /// As given.
        start: u64,
        /// As given.
        blocks: u64,
    },
    /// There is no such region.
    #[error("The microVM has no CMA region: set memory.cma_mib before starting it.")]
    NoCma,
    /// All of memory would be made resident.
    #[error("back needs scope \"range\" or \"cma\".")]
    BackAll,
    /// A pass that may spend nothing does nothing.
    #[error("budget_mib and budget_ms must not be 0.")]
    NoBudget,
}

/// The job for `wanted`, for a guest with this memory layout.
fn job(wanted: &Compact, layout: &MemoryLayout) -> Result<PassJob, CompactFault> {
    let scope = match (wanted.scope, wanted.start, wanted.blocks) {
        (Scope::All, None, None) => None,
        (Scope::Cma, None, None) => Some(layout.cma().ok_or(CompactFault::NoCma)?),
        (Scope::Range, Some(start), Some(blocks)) => Some(blocks_of_ram(layout, start, blocks)?),
        _ => return Err(CompactFault::RangeFields),
    };
    if wanted.budget_mib == Some(0) || wanted.budget_ms == Some(0) {
        return Err(CompactFault::NoBudget);
    }
    let bytes = wanted.budget_mib.map(|mib| Bytes::from_mib(mib).unwrap_or(Bytes(u64::MAX)));
    let limits = PassLimits {
        bytes: bytes.unwrap_or(PassLimits::UNLIMITED.bytes),
        time: wanted.budget_ms.map_or(PassLimits::UNLIMITED.time, Duration::from_millis),
    };
    let goals = match (wanted.back, scope) {
        (false, scope) => Goals { scope, ..Goals::all(wanted.evacuate) },
        (true, Some(scope)) => Goals::backing(scope),
        (true, None) => return Err(CompactFault::BackAll),
    };
    Ok(PassJob { goals, limits })
}

fn blocks_of_ram(
    layout: &MemoryLayout,
    start: u64,
    blocks: u64,
) -> Result<GuestRange, CompactFault> {
    let wrong = CompactFault::NotRam { start, blocks };
    if !start.is_multiple_of(BLOCK_SIZE) {
        return Err(wrong);
    }
    blocks
        .checked_mul(BLOCK_SIZE)
        .and_then(|len| GuestRange::from_bytes(GuestAddress(start), Bytes(len)))
        .filter(|range| layout.ram().iter().any(|ram| ram.covers(range)))
        .ok_or(wrong)
}

impl From<&Totals> for MemoryTotals {
    fn from(totals: &Totals) -> Self {
        Self {
            resident_bytes: totals.resident.0,
            huge_bytes: totals.huge.0,
            ballooned_bytes: totals.ballooned.0,
            gpu_bytes: totals.gpu.0,
            wasted_bytes: totals.wasted.0,
        }
    }
}

impl From<&StepTally> for StepCounts {
    fn from(tally: &StepTally) -> Self {
        let count = |n: usize| n as u64;
        Self {
            done: count(tally.done),
            moot: count(tally.moot),
            busy: count(tally.busy),
            refused: count(tally.refused),
            bytes: tally.bytes.0,
        }
    }
}

impl From<&StageTime> for StageReport {
    fn from(time: &StageTime) -> Self {
        Self {
            stage: match time.stage {
                Stage::Gather => PassStage::Gather,
                Stage::Evacuate { sync: false } => PassStage::Evacuate,
                Stage::Evacuate { sync: true } => PassStage::EvacuateSync,
                Stage::Squeeze => PassStage::Squeeze,
                Stage::Host => PassStage::Host,
            },
            rounds: time.rounds,
            took_us: micros(time.took),
            settling_us: micros(time.settling),
        }
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros().saturating_u64()
}

impl From<&PassReport> for CompactReport {
    fn from(report: &PassReport) -> Self {
        Self {
            before: (&report.before).into(),
            after: (&report.after).into(),
            discard: (&report.tallies.discard).into(),
            collapse: (&report.tallies.collapse).into(),
            evacuate: (&report.tallies.evacuate).into(),
            back: (&report.tallies.back).into(),
            gather: (&report.tallies.gather).into(),
            planned: report.planned as u64,
            left_out: report.left_out as u64,
            took_us: micros(report.took),
            stages: report.stages.iter().map(StageReport::from).collect(),
            end: match report.end {
                EndReason::Finished => PassEnd::Finished,
                EndReason::OutOfTime => PassEnd::OutOfTime,
                EndReason::Cancelled => PassEnd::Cancelled,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(cma_mib: u64) -> MemoryLayout {
        let mib = |n| Bytes::from_mib(n).unwrap();
        MemoryLayout::new(mib(4096), mib(cma_mib)).unwrap()
    }

    fn parsed(json: &str, cma_mib: u64) -> Result<PassJob, CompactFault> {
        job(&serde_json::from_str(json).unwrap(), &layout(cma_mib))
    }

    #[test]
    fn an_empty_request_means_all_of_memory() {
        let job = parsed("{}", 0).unwrap();
        assert_eq!((job.goals.scope, job.limits), (None, PassLimits::UNLIMITED));
    }

    #[test]
    fn scopes_name_regions() {
        let scope = |json: &str, cma| parsed(json, cma).unwrap().goals.scope.unwrap();
        assert_eq!(scope(r#"{"scope":"cma"}"#, 64), layout(64).cma().unwrap());
        let range = scope(r#"{"scope":"range","start":4194304,"blocks":3}"#, 0);
        assert_eq!((range.address().0, range.bytes()), (4 << 20, Bytes(6 << 20)));
    }

    #[test]
    fn back_populates_a_region() {
        let goals = parsed(r#"{"scope":"cma","back":true}"#, 64).unwrap().goals;
        assert_eq!(goals, Goals::backing(layout(64).cma().unwrap()));
    }

    #[test]
    fn rejects_contradictory_requests() {
        let fault = |json: &str| parsed(json, 0).unwrap_err();
        assert_eq!(fault(r#"{"scope":"cma"}"#), CompactFault::NoCma);
        assert_eq!(fault(r#"{"scope":"range","start":0}"#), CompactFault::RangeFields);
        assert_eq!(fault(r#"{"start":0,"blocks":1}"#), CompactFault::RangeFields);
        assert_eq!(fault(r#"{"budget_ms":0}"#), CompactFault::NoBudget);
        assert_eq!(fault(r#"{"back":true}"#), CompactFault::BackAll);
        for (start, blocks) in [(4096, 1), (0, 0), (3 << 30, 1), (0, 1537), (0, u64::MAX)] {
            let json = format!(r#"{{"scope":"range","start":{start},"blocks":{blocks}}}"#);
            assert_eq!(fault(&json), CompactFault::NotRam { start, blocks });
        }
    }
}
