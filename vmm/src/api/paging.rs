// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/park`, `/memory/unpark`, `/memory/paging`, `/memory/pool`: guest memory that is
//! compressed and elsewhere. Ballast's own.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;

/// Actions on parked memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PagingAction {
    /// Parks: [`PagingReply::Parked`] at its end, or nothing at once.
    Park(Park),
    /// Ends the parking or bringing back that runs.
    Cancel,
    /// Brings everything back: [`PagingReply::Unparked`] at its end, or nothing at once.
    Unpark(Unpark),
    /// Progress and figures: [`PagingReply::Status`].
    Get,
    /// The pool of compressed pages: [`PagingReply::Pool`].
    Pool,
}

impl PagingAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::STARTED
    }
}

/// Replies to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PagingReply {
    /// To [`PagingAction::Park`].
    Parked(Box<ParkReport>),
    /// To [`PagingAction::Unpark`].
    Unparked(UnparkReport),
    /// To [`PagingAction::Get`].
    Status(Box<PagingStatus>),
    /// To [`PagingAction::Pool`].
    Pool(Box<PoolStatus>),
}

/// Parking (`PUT /memory/park`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Park {
    /// MiB of resident guest memory to leave in place: what the guest is known to touch first.
    pub floor_mib: u64,
    /// Whether to pause the vCPUs before. They stay paused until they are resumed.
    pub pause: bool,
    /// Whether to answer only when it is over, with its report.
    pub wait: bool,
}

impl Default for Park {
    fn default() -> Self {
        Self { floor_mib: 0, pause: false, wait: true }
    }
}

/// Bringing back (`PUT /memory/unpark`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Unpark {
    /// Whether to answer only when it is over, with its report.
    pub wait: bool,
}

impl Default for Unpark {
    fn default() -> Self {
        Self { wait: true }
    }
}

/// What parking came to. All in blocks of 2 MiB, unless the name says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkReport {
    /// Went to the pool.
    pub parked: u64,
    /// Kept for `floor_mib`.
    pub kept: u64,
    /// Left: pinned, or in use by the display.
    pub left_pinned: u64,
    /// Left: made of small pages.
    pub left_small: u64,
    /// Left: in use by the host's kernel.
    pub left_busy: u64,
    /// Left: touched by the guest meanwhile.
    pub left_wanted: u64,
    /// Left: do not compress.
    pub left_incompressible: u64,
    /// Bytes of the pool that packing it closer emptied.
    pub compacted_bytes: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Why it ended early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// What bringing back came to. In blocks of 2 MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnparkReport {
    /// Are back.
    pub returned: u64,
    /// Could not be brought back now, for want of host memory: they come when they are touched.
    pub left: u64,
    /// Whose contents are lost.
    pub lost: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PagingOperation {
    /// Memory goes to the pool.
    Park,
    /// Memory is brought back.
    Unpark,
}

/// Where guest memory is (`GET /memory/paging`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PagingStatus {
    /// Whether memory of this machine has been parked or is prepared for it.
    pub active: bool,
    /// What runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<PagingOperation>,
    /// Blocks that it has done.
    pub done: u64,
    /// Blocks that it is to do.
    pub planned: u64,
    /// Guest memory that is in the pool, uncompressed.
    pub absent_bytes: u64,
    /// Guest memory on its way there.
    pub staged_bytes: u64,
    /// What the pool takes of the host's memory for it, tables included.
    pub pool_bytes: u64,
    /// Blocks that the guest is known to touch first when it wakes up.
    pub hot_blocks: u64,
    /// Faults on absent memory, as the kernel reported them.
    pub faults: u64,
    /// Time from reading a fault to having its block in place, in nanoseconds: half took no longer.
    pub fault_p50_ns: u64,
    /// … and all but one in a hundred.
    pub fault_p99_ns: u64,
    /// Counters since the first parking.
    pub counters: PagingCounters,
    /// What the last parking came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_park: Option<ParkReport>,
}

/// Counters of the pager. In blocks of 2 MiB, unless the name says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PagingCounters {
    /// Taken out of guest memory.
    pub out: u64,
    /// Compressed and stored.
    pub stored: u64,
    /// Moved back before they were stored, as the guest touched them.
    pub recalled: u64,
    /// Moved back, as they did not compress.
    pub incompressible: u64,
    /// Could not be taken out, as the host's kernel used a page.
    pub busy: u64,
    /// Brought back by a touch.
    pub touched: u64,
    /// Brought back unasked.
    pub prefetched: u64,
    /// Brought back in small pages, as parts of them had been given up meanwhile.
    pub landed_small: u64,
    /// Given up by the guest while they were away.
    pub dropped: u64,
    /// Times that a block could not be brought back at once.
    pub retries: u64,
    /// Lost.
    pub lost: u64,
    /// Time spent compressing, on all threads, in nanoseconds.
    pub compress_ns: u64,
    /// Bytes compressed.
    pub compress_bytes: u64,
    /// Compressed once more by the second codec.
    pub repacked: u64,
    /// Bytes that this made them smaller.
    pub repack_saved_bytes: u64,
}

/// The pool of compressed pages (`GET /memory/pool`). In bytes, unless the name says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Most that compressed pages may take.
    pub limit_bytes: u64,
    /// What they take.
    pub used_bytes: u64,
    /// Most that they took at any time.
    pub used_max_bytes: u64,
    /// What they were before compression, zero pages not counted.
    pub original_bytes: u64,
    /// What they are after compression, without what packing them wastes.
    pub compressed_bytes: u64,
    /// Tables beside them.
    pub metadata_bytes: u64,
    /// Pages of one repeated word.
    pub same_pages: u64,
    /// Pages that are kept as they are.
    pub raw_pages: u64,
    /// Frames of 4 KiB that packing closer has emptied so far.
    pub frames_compacted: u64,
    /// Frames of 4 KiB that were moved to make room so far.
    pub frames_moved: u64,
    /// Share of free memory in pieces of less than 2 MiB, per mille.
    pub fragmentation_permille: u32,
}

/// How handlers reach the machine.
type Machine = State<Asker<PagingAction, PagingReply>>;

pub(super) fn routes() -> Router<Asker<PagingAction, PagingReply>> {
    Router::new()
        .route("/memory/park", put(put_park).delete(delete_park))
        .route("/memory/unpark", put(put_unpark))
        .route("/memory/paging", get(get_paging))
        .route("/memory/pool", get(get_pool))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_park, delete_park, put_unpark, get_paging, get_pool))]
pub(super) struct Description;

/// Puts guest memory, compressed, into the monitor's pool; the guest has it back when it touches it.
#[utoipa::path(put, path = "/memory/park", tag = "memory", request_body = Park,
    responses((status = 200, body = ParkReport), (status = 204, description = "Parking has started"),
              (status = 400, body = FaultMessage)))]
pub(super) async fn put_park(State(machine): Machine, Body(body): Body<Park>) -> HandlerResult {
    match machine.ask(PagingAction::Park(body)).await? {
        Some(PagingReply::Parked(report)) => Ok(axum::Json(report).into_response()),
        None => Ok(http::StatusCode::NO_CONTENT.into_response()),
        Some(_) => Err(ApiError::WrongReply),
    }
}

/// Ends the parking or bringing back that runs; what is done stays so.
#[utoipa::path(delete, path = "/memory/park", tag = "memory",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn delete_park(State(machine): Machine) -> HandlerResult {
    done(&machine, PagingAction::Cancel).await
}

/// Brings all parked memory back.
#[utoipa::path(put, path = "/memory/unpark", tag = "memory", request_body = Unpark,
    responses((status = 200, body = UnparkReport), (status = 204, description = "It has started"),
              (status = 400, body = FaultMessage)))]
pub(super) async fn put_unpark(State(machine): Machine, Body(body): Body<Unpark>) -> HandlerResult {
    match machine.ask(PagingAction::Unpark(body)).await? {
        Some(PagingReply::Unparked(report)) => Ok(axum::Json(report).into_response()),
        None => Ok(http::StatusCode::NO_CONTENT.into_response()),
        Some(_) => Err(ApiError::WrongReply),
    }
}

/// How much of guest memory is parked, and what the pager has done.
#[utoipa::path(get, path = "/memory/paging", tag = "memory",
    responses((status = 200, body = PagingStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_paging(State(machine): Machine) -> HandlerResult {
    reported!(machine, PagingAction::Get, PagingReply::Status)
}

/// The pool that parked memory lies in.
#[utoipa::path(get, path = "/memory/pool", tag = "memory",
    responses((status = 200, body = PoolStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_pool(State(machine): Machine) -> HandlerResult {
    reported!(machine, PagingAction::Pool, PagingReply::Pool)
}
