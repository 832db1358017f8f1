// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/compact`: compaction passes. Ballast's own.

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
    /// Runs a pass: [`CompactionReply::Report`] at its end, or nothing at once.
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
    /// How long each stage took, in order.
    #[serde(default)]
    pub stages: Vec<StageReport>,
    /// Why it ended.
    pub end: PassEnd,
}

/// A stage of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassStage {
    /// The guest made whole blocks of its free memory, lent them, and has them back.
    Gather,
    /// The guest evacuated sparse blocks.
    Evacuate,
    /// The same, waiting for what was busy.
    EvacuateSync,
    /// The guest evacuated full blocks into the gaps of others.
    Squeeze,
    /// The host discarded what it held for nothing, and made blocks huge.
    Host,
}

/// How long one stage of a pass took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageReport {
    /// Which.
    pub stage: PassStage,
    /// How often it was planned.
    pub rounds: u32,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Of that, until the guest had taken back what it had lent.
    pub settling_us: u64,
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

/// How handlers reach the machine.
type Machine = State<Asker<CompactionAction, CompactionReply>>;

pub(super) fn routes() -> Router<Asker<CompactionAction, CompactionReply>> {
    Router::new().route("/memory/compact", get(get_compact).put(put_compact).delete(delete_compact))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_compact, get_compact, delete_compact))]
pub(super) struct Description;

/// Runs a pass over guest memory. With `wait`, answers when it is over, with its report.
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

/// How far the present pass is, and what the last one did.
#[utoipa::path(get, path = "/memory/compact", tag = "memory",
    responses((status = 200, body = CompactStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_compact(State(machine): Machine) -> HandlerResult {
    reported!(machine, CompactionAction::Get, CompactionReply::Status)
}

/// Ends the present pass after the step that it is at.
#[utoipa::path(delete, path = "/memory/compact", tag = "memory",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn delete_compact(State(machine): Machine) -> HandlerResult {
    done(&machine, CompactionAction::Cancel).await
}
