// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/compact`: compaction passes. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;

/// Actions on compaction passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompactionAction {
    /// Runs a pass: [`CompactionReply::Report`] at its end, or no report immediately.
    Compact(Compact),
    /// Progress, and the last pass: [`CompactionReply::Status`].
    Get,
    /// Cancels the pass.
    Cancel,
}

impl CompactionAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            // A paused guest cannot answer.
            Self::Compact(_) => Phases::RUNNING,
            Self::Get | Self::Cancel => Phases::STARTED,
        }
    }
}

/// Replies to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompactionReply {
    /// To [`CompactionAction::Compact`].
    Report(Box<CompactReport>),
    /// To [`CompactionAction::Get`].
    Status(Box<CompactStatus>),
}

/// Scope of a pass.
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
    /// Whether to respond only after the pass, with its report.
    pub wait: bool,
    /// Whether to ask the guest to evacuate blocks and to lend free memory during the pass.
    pub evacuate: bool,
    /// With scope `range` or `cma`: make every block huge and present, ready for contiguous
    /// allocation. Blocks with ballooned pages are skipped.
    pub back: bool,
    /// Limit on copied memory, in MiB; unlimited if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_mib: Option<u64>,
    /// Time limit, in milliseconds; unlimited if absent.
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

/// Totals of guest memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryTotals {
    /// In the host's memory.
    pub resident_bytes: u64,
    /// Resident in huge pages.
    pub huge_bytes: u64,
    /// In the balloon.
    pub ballooned_bytes: u64,
    /// Backing of GPU resources.
    pub gpu_bytes: u64,
    /// In the balloon but still resident.
    pub wasted_bytes: u64,
}

/// Results of the steps of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepCounts {
    /// Carried out.
    pub done: u64,
    /// Skipped: the guest's activity had made them useless.
    pub moot: u64,
    /// Failed: pages were busy.
    pub busy: u64,
    /// Failed: the host had no free huge page.
    pub refused: u64,
    /// Bytes discarded or made huge.
    pub bytes: u64,
}

/// Why a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassEnd {
    /// All that was planned was tried.
    Finished,
    /// The time was used up.
    OutOfTime,
    /// It was cancelled.
    Cancelled,
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactReport {
    /// Guest memory before.
    pub before: MemoryTotals,
    /// Guest memory after.
    pub after: MemoryTotals,
    /// Wasted pages, discarded.
    pub discard: StepCounts,
    /// Blocks made huge.
    pub collapse: StepCounts,
    /// Blocks that the guest evacuated.
    pub evacuate: StepCounts,
    /// Blocks made huge and present for contiguous allocation.
    pub back: StepCounts,
    /// Whole free blocks that the guest lent for the pass and got back.
    pub gather: StepCounts,
    /// Steps planned.
    pub planned: u64,
    /// Useful steps that did not fit in the budget.
    pub left_out: u64,
    /// Duration, in microseconds.
    pub took_us: u64,
    /// Duration of each stage, in order.
    #[serde(default)]
    pub stages: Vec<StageReport>,
    /// Why it ended.
    pub end: PassEnd,
}

/// A stage of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassStage {
    /// The guest made whole blocks of its free memory, lent them, and got them back.
    Gather,
    /// The guest evacuated sparse blocks.
    Evacuate,
    /// The same, waiting for busy pages.
    EvacuateSync,
    /// The guest evacuated full blocks into the gaps of others.
    Squeeze,
    /// The host discarded wasted pages and made blocks huge.
    Host,
}

/// Duration of one stage of a pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageReport {
    /// Which.
    pub stage: PassStage,
    /// Number of planning rounds.
    pub rounds: u32,
    /// Duration, in microseconds.
    pub took_us: u64,
    /// Time within it until the guest had taken back the memory it lent, in microseconds.
    pub settling_us: u64,
}

/// Progress of compaction (`GET /memory/compact`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactStatus {
    /// Whether a pass runs.
    pub running: bool,
    /// Steps done.
    pub done: u64,
    /// Steps planned.
    pub planned: u64,
    /// Report of the last finished pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<CompactReport>,
}

/// How handlers reach the machine.
type Machine = State<Asker<CompactionAction, CompactionReply>>;

pub(super) fn routes() -> Router<Asker<CompactionAction, CompactionReply>> {
    Router::new().route("/memory/compact", get(get_compact).put(put_compact).delete(delete_compact))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_compact, get_compact, delete_compact))]
pub(super) struct Description;

/// Runs a compaction pass over guest memory. With `wait`, responds after the pass with its report.
#[utoipa::path(put, path = "/memory/compact", tag = "memory", request_body = Compact,
    responses((status = 200, body = CompactReport), (status = 204, description = "The pass has started"),
              (status = 400, body = FaultMessage)))]
pub(super) async fn put_compact(
    State(machine): Machine,
    Body(body): Body<Compact>,
) -> HandlerResult {
    match machine.ask(CompactionAction::Compact(body)).await? {
        Some(CompactionReply::Report(report)) => Ok(axum::Json(report).into_response()),
        None => Ok(http::StatusCode::NO_CONTENT.into_response()),
        Some(_) => Err(ApiError::WrongReply),
    }
}

/// Progress of the running pass, and the report of the last one.
#[utoipa::path(get, path = "/memory/compact", tag = "memory",
    responses((status = 200, body = CompactStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_compact(State(machine): Machine) -> HandlerResult {
    reported!(machine, CompactionAction::Get, CompactionReply::Status)
}

/// Cancels the running pass after its current step.
#[utoipa::path(delete, path = "/memory/compact", tag = "memory",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn delete_compact(State(machine): Machine) -> HandlerResult {
    done(&machine, CompactionAction::Cancel).await
}
