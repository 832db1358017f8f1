// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/compact`, `/memory/blocks`, `/memory/cma`: the host's side of guest memory, looked at
//! and put in order. Ours.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use devices::balloon::Statistics;
use mm::blocks::map::Totals;
use mm::blocks::pass::{End, Report, Tally};
use mm::blocks::policy::{Budget, Goals};
use mm::layout::MemoryLayout;
use mm::units::{BLOCK_SIZE, Bytes, GuestRange};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vm_memory::GuestAddress;

use super::action::{Action, Reply};
use super::body::Body;
use super::channel::Door;
use super::error::{ApiError, FaultMessage};
use super::{Answer, At, done, told};
use crate::block_view::BlockRuns;
use crate::compactor::{Compactor, Job};

/// The media type of the compact form of the block map.
const BYTES: &str = "application/octet-stream";

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/memory/compact", get(get_compact).put(put_compact).delete(delete_compact))
        .route("/memory/blocks", get(get_blocks))
        .route("/memory/cma", get(get_cma))
}

/// Where a pass works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All of guest memory.
    #[default]
    All,
    /// `blocks` blocks from address `start`.
    Range,
    /// The CMA region.
    Cma,
}

/// A compaction pass (`PUT /memory/compact`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compact {
    /// Where it works.
    pub scope: Scope,
    /// With scope `range`: guest-physical address of the first block, a multiple of 2 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// With scope `range`: number of blocks of 2 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    /// Whether to answer only when the pass is over, with its report.
    pub wait: bool,
    /// Whether the guest may be asked to empty blocks, and to lend free memory for a while.
    pub evacuate: bool,
    /// With scope `range` or `cma`: make every block there huge and present, for contiguous use that
    /// is to come; blocks with pages in the balloon are left as they are.
    pub back: bool,
    /// MiB that may be copied; as many as it takes if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_mib: Option<u64>,
    /// Milliseconds that may be spent; as many as it takes if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<u64>,
}

impl Default for Compact {
    fn default() -> Self {
        Self {
            scope: Scope::All,
            start: None,
            blocks: None,
            wait: true,
            evacuate: true,
            back: false,
            budget_mib: None,
            budget_ms: None,
        }
    }
}

/// Why a pass cannot be what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompactFault {
    /// Start and length go with a range, and only with it.
    #[error("start and blocks belong to scope \"range\", which needs both of them.")]
    RangeFields,
    /// The range is not blocks of RAM.
    #[error("start {start:#x} and blocks {blocks} name no blocks of guest memory.")]
    NotRam {
        /// As given.
        start: u64,
        /// As given.
        blocks: u64,
    },
    /// There is no such region.
    #[error("The microVM has no CMA region: set memory.cma_mib before the start.")]
    NoCma,
    /// All of memory would be made resident.
    #[error("back needs scope \"range\" or \"cma\".")]
    BackAll,
    /// A pass that may spend nothing does nothing.
    #[error("budget_mib and budget_ms must not be 0.")]
    NoBudget,
}

impl Compact {
    /// The pass, for a guest with memory laid out so.
    pub fn to_job(&self, layout: &MemoryLayout) -> Result<Job, CompactFault> {
        let scope = match (self.scope, self.start, self.blocks) {
            (Scope::All, None, None) => None,
            (Scope::Cma, None, None) => Some(layout.cma().ok_or(CompactFault::NoCma)?),
            (Scope::Range, Some(start), Some(blocks)) => {
                Some(blocks_of_ram(layout, start, blocks)?)
            }
            _ => return Err(CompactFault::RangeFields),
        };
        if self.budget_mib == Some(0) || self.budget_ms == Some(0) {
            return Err(CompactFault::NoBudget);
        }
        let bytes = self.budget_mib.map(|mib| Bytes::from_mib(mib).unwrap_or(Bytes(u64::MAX)));
        let budget = Budget {
            bytes: bytes.unwrap_or(Budget::UNLIMITED.bytes),
            time: self.budget_ms.map_or(Budget::UNLIMITED.time, Duration::from_millis),
        };
        let goals = match (self.back, scope) {
            (false, scope) => Goals { scope, ..Goals::all(self.evacuate) },
            (true, Some(scope)) => Goals::backing(scope),
            (true, None) => return Err(CompactFault::BackAll),
        };
        Ok(Job { goals, budget })
    }
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

/// Guest memory in sums. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryTotals {
    /// In the host's memory.
    pub resident_bytes: u64,
    /// Of that, in huge pages.
    pub huge_bytes: u64,
    /// In the balloon.
    pub ballooned_bytes: u64,
    /// Backing of GPU resources.
    pub gpu_bytes: u64,
    /// Resident although ballooned.
    pub wasted_bytes: u64,
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

/// How the steps of one kind went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepCounts {
    /// Carried out.
    pub done: u64,
    /// Left out, as the guest had made them worthless.
    pub moot: u64,
    /// Tried in vain: pages were busy.
    pub busy: u64,
    /// Refused: the host had no huge page.
    pub refused: u64,
    /// Bytes given back, or made huge.
    pub bytes: u64,
}

impl From<&Tally> for StepCounts {
    fn from(tally: &Tally) -> Self {
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

/// Why a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassEnd {
    /// All that was planned was tried.
    Finished,
    /// The time was used up.
    OutOfTime,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactReport {
    /// Guest memory before.
    pub before: MemoryTotals,
    /// Guest memory after.
    pub after: MemoryTotals,
    /// Pages held for nothing, given back.
    pub discard: StepCounts,
    /// Blocks made huge.
    pub collapse: StepCounts,
    /// Blocks that the guest emptied.
    pub evacuate: StepCounts,
    /// Blocks made huge and present for contiguous use.
    pub back: StepCounts,
    /// Blocks that the guest made of its free memory, lent, and has back.
    pub gather: StepCounts,
    /// Steps planned.
    pub planned: u64,
    /// Steps worth doing that the budget had no room for.
    pub left_out: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Why it ended.
    pub end: PassEnd,
}

impl From<&Report> for CompactReport {
    fn from(report: &Report) -> Self {
        Self {
            before: (&report.before).into(),
            after: (&report.after).into(),
            discard: (&report.discard).into(),
            collapse: (&report.collapse).into(),
            evacuate: (&report.evacuate).into(),
            back: (&report.back).into(),
            gather: (&report.gather).into(),
            planned: report.planned as u64,
            left_out: report.left_out as u64,
            took_us: u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
            end: match report.end {
                End::Finished => PassEnd::Finished,
                End::OutOfTime => PassEnd::OutOfTime,
                End::Cancelled => PassEnd::Cancelled,
            },
        }
    }
}

/// How far compaction is (`GET /memory/compact`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactStatus {
    /// Whether a pass runs.
    pub running: bool,
    /// Steps that it has taken.
    pub done: u64,
    /// Steps that it has planned.
    pub planned: u64,
    /// What the last pass that ended did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<CompactReport>,
}

impl CompactStatus {
    /// Of a compactor.
    pub fn of(compactor: &Compactor) -> Self {
        let progress = compactor.progress();
        Self {
            running: progress.running,
            done: progress.done as u64,
            planned: progress.planned as u64,
            last: compactor.last_report().as_ref().map(CompactReport::from),
        }
    }
}

/// The CMA region (`GET /memory/cma`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CmaStatus {
    /// Guest-physical address of its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What of it is in the host's memory and so on, in bytes.
    #[serde(flatten)]
    pub totals: MemoryTotals,
    /// What the guest says of it; absent where the guest does not, or says what cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<CmaUse>,
}

/// How the guest uses what it keeps for contiguous allocations, in bytes, as it told last with the
/// balloon's statistics. Nothing of it can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CmaUse {
    /// All its regions, this one and others that its command line may name.
    pub total_bytes: u64,
    /// Used by nobody.
    pub free_bytes: u64,
    /// Lent to pages that can be moved out of the way.
    pub lent_bytes: u64,
    /// In contiguous use by devices.
    pub contiguous_bytes: u64,
    /// How long ago it told, in milliseconds.
    pub age_ms: u64,
}

/// What a guest said of its contiguous regions cannot be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest says that of {total} B of CMA {free} B are free and {allocated} B allocated")]
pub struct CmaNonsense {
    total: u64,
    free: u64,
    allocated: u64,
}

impl CmaUse {
    /// What `told` says, to a host whose guest has `ram` in all; `None` where it says nothing.
    pub fn of(told: &Statistics, ram: Bytes) -> Result<Option<Self>, CmaNonsense> {
        let figures = (told.cma_total, told.cma_free, told.cma_allocated, told.updated);
        let (Some(total), Some(free), Some(allocated), Some(updated)) = figures else {
            return Ok(None);
        };
        if total > ram.0 || free > total || allocated > total {
            return Err(CmaNonsense { total, free, allocated });
        }
        Ok(Some(Self {
            total_bytes: total,
            free_bytes: free,
            // Both were counted at different moments: together they may come to more than there is.
            lent_bytes: total.saturating_sub(free.saturating_add(allocated)),
            contiguous_bytes: allocated,
            age_ms: u64::try_from(updated.elapsed().as_millis()).unwrap_or(u64::MAX),
        }))
    }
}

/// Runs a pass over guest memory. With `wait`, answers when it is over, with its report.
#[utoipa::path(put, path = "/memory/compact", tag = "memory", request_body = Compact,
    responses((status = 200, body = CompactReport), (status = 204, description = "It runs"),
              (status = 400, body = FaultMessage)))]
pub(super) async fn put_compact(State(door): At, Body(body): Body<Compact>) -> Answer {
    match door.ask(Action::Compact(body)).await? {
        Reply::Compaction(report) => Ok(axum::Json(report).into_response()),
        Reply::Done => Ok(http::StatusCode::NO_CONTENT.into_response()),
        _ => Err(ApiError::WrongReply),
    }
}

/// How far the present pass is, and what the last one did.
#[utoipa::path(get, path = "/memory/compact", tag = "memory",
    responses((status = 200, body = CompactStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_compact(State(door): At) -> Answer {
    told!(door, Action::GetCompaction, Reply::CompactStatus)
}

/// Ends the present pass after the step that it is at.
#[utoipa::path(delete, path = "/memory/compact", tag = "memory",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn delete_compact(State(door): At) -> Answer {
    done(&door, Action::CancelCompaction).await
}

/// What every block of guest memory is made of: JSON, or the compact form for those who accept
/// `application/octet-stream`.
#[utoipa::path(get, path = "/memory/blocks", tag = "memory",
    responses((status = 200, body = BlockRuns), (status = 400, body = FaultMessage)))]
pub(super) async fn get_blocks(State(door): At, headers: HeaderMap) -> Answer {
    let Reply::Blocks(runs) = door.ask(Action::GetBlocks).await? else {
        return Err(ApiError::WrongReply);
    };
    let wants_bytes = headers.get(ACCEPT).is_some_and(|accept| accept == BYTES);
    Ok(if wants_bytes {
        ([(CONTENT_TYPE, BYTES)], runs.to_bytes()).into_response()
    } else {
        axum::Json(runs).into_response()
    })
}

/// The CMA region: what the host sees of it, and what the guest says.
#[utoipa::path(get, path = "/memory/cma", tag = "memory",
    responses((status = 200, body = CmaStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_cma(State(door): At) -> Answer {
    told!(door, Action::GetCma, Reply::Cma)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(cma_mib: u64) -> MemoryLayout {
        let mib = |n| Bytes::from_mib(n).unwrap();
        MemoryLayout::new(mib(4096), mib(cma_mib)).unwrap()
    }

    fn job(json: &str, cma_mib: u64) -> Result<Job, CompactFault> {
        serde_json::from_str::<Compact>(json).unwrap().to_job(&layout(cma_mib))
    }

    #[test]
    fn an_empty_request_is_all_there_is() {
        let job = job("{}", 0).unwrap();
        assert_eq!((job.goals.scope, job.budget), (None, Budget::UNLIMITED));
    }

    #[test]
    fn scopes() {
        let scope = |json: &str, cma| job(json, cma).unwrap().goals.scope.unwrap();
        assert_eq!(scope(r#"{"scope":"cma"}"#, 64), layout(64).cma().unwrap());
        let range = scope(r#"{"scope":"range","start":4194304,"blocks":3}"#, 0);
        assert_eq!((range.address().0, range.bytes()), (4 << 20, Bytes(6 << 20)));
    }

    #[test]
    fn backing_is_of_a_range() {
        let goals = job(r#"{"scope":"cma","back":true}"#, 64).unwrap().goals;
        assert_eq!(goals, Goals::backing(layout(64).cma().unwrap()));
    }

    fn told(total: u64, free: u64, allocated: u64) -> Result<Option<CmaUse>, CmaNonsense> {
        let statistics = Statistics {
            cma_total: Some(total),
            cma_free: Some(free),
            cma_allocated: Some(allocated),
            updated: Some(std::time::Instant::now()),
            ..Statistics::default()
        };
        CmaUse::of(&statistics, Bytes(1000))
    }

    #[test]
    fn what_is_neither_free_nor_allocated_is_lent() {
        let parts = |total, free, allocated| {
            told(total, free, allocated).unwrap().map(|c| (c.lent_bytes, c.contiguous_bytes))
        };
        assert_eq!(parts(100, 30, 20), Some((50, 20)));
        assert_eq!(parts(100, 60, 50), Some((0, 50)), "counted at different moments");
        assert_eq!(parts(0, 0, 0), Some((0, 0)));
    }

    #[test]
    fn a_guest_that_says_nothing_or_nonsense_of_its_regions() {
        assert_eq!(CmaUse::of(&Statistics::default(), Bytes(1000)), Ok(None));
        for (total, free, allocated) in
            [(1001, 0, 0), (100, 101, 0), (100, 0, 101), (u64::MAX, u64::MAX, u64::MAX)]
        {
            let nonsense = CmaNonsense { total, free, allocated };
            assert_eq!(told(total, free, allocated), Err(nonsense));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let fault = |json: &str| job(json, 0).unwrap_err();
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
