// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/park`, `/memory/unpark`, `/memory/paging`, `/memory/pool`: parked guest memory. Ballast
//! extension.

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
    /// Parks: [`PagingReply::Parked`] at its end, or no report immediately.
    Park(Park),
    /// Ends the parking or bringing back that runs.
    Cancel,
    /// Brings everything back: [`PagingReply::Unparked`] at its end, or no report immediately.
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

/// A park operation (`PUT /memory/park`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Park {
    /// Resident guest memory to keep in place, in MiB; the hot set is kept first.
    pub floor_mib: u64,
    /// Whether the guest first gives up free memory and page cache through its balloon, which it gets
    /// back empty. Without effect while the machine is paused, and with `pause`.
    pub trim: bool,
    /// Whether to pause the vCPUs first. They stay paused until resumed.
    pub pause: bool,
    /// Whether to respond only after it has finished, with its report.
    pub wait: bool,
}

impl Default for Park {
    fn default() -> Self {
        Self { floor_mib: 0, trim: false, pause: false, wait: true }
    }
}

/// An unpark operation (`PUT /memory/unpark`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Unpark {
    /// Whether to respond only after it has finished, with its report.
    pub wait: bool,
}

impl Default for Unpark {
    fn default() -> Self {
        Self { wait: true }
    }
}

/// Report of a park operation, in 2 MiB blocks unless the name states another unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkReport {
    /// Moved to the pool.
    pub parked: u64,
    /// Kept for `floor_mib`.
    pub kept: u64,
    /// Left: pinned, or in use by the display.
    pub left_pinned: u64,
    /// Left: made of small pages.
    pub left_small: u64,
    /// Left: in use by the host's kernel.
    pub left_busy: u64,
    /// Left: accessed by the guest during the operation.
    pub left_wanted: u64,
    /// Left: not compressible.
    pub left_incompressible: u64,
    /// Bytes that the guest gave up before, with `trim`.
    #[serde(default)]
    pub trimmed_bytes: u64,
    /// Why it gave no more, with `trim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trim_ended: Option<String>,
    /// Bytes freed by compacting the pool.
    pub compacted_bytes: u64,
    /// Duration, in microseconds.
    pub took_us: u64,
    /// Reason for stopping early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// Report of an unpark operation, in 2 MiB blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnparkReport {
    /// Blocks brought back.
    pub returned: u64,
    /// Still parked because host memory is short; brought back on access.
    pub left: u64,
    /// Blocks whose contents are lost.
    pub lost: u64,
    /// Duration, in microseconds.
    pub took_us: u64,
}

/// The running operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PagingOperation {
    /// The guest gives up memory that it can spare.
    Trim,
    /// Memory is moved to the pool.
    Park,
    /// Memory is brought back.
    Unpark,
}

/// State of parking (`GET /memory/paging`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PagingStatus {
    /// Whether the machine is prepared for parking.
    pub active: bool,
    /// The running operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<PagingOperation>,
    /// Blocks done.
    pub done: u64,
    /// Blocks planned.
    pub planned: u64,
    /// Guest memory in the pool, as its uncompressed size.
    pub absent_bytes: u64,
    /// Guest memory in staging, on its way into the pool.
    pub staged_bytes: u64,
    /// Host memory used by the pool, including tables.
    pub pool_bytes: u64,
    /// Blocks known to be accessed first when the guest wakes up.
    pub hot_blocks: u64,
    /// Faults on absent memory reported by the kernel.
    pub faults: u64,
    /// Median time from reading a fault to its block being in place, in nanoseconds.
    pub fault_p50_ns: u64,
    /// 99th percentile of the same.
    pub fault_p99_ns: u64,
    /// Counters since the first parking.
    pub counters: PagingCounters,
    /// Report of the last park operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_park: Option<ParkReport>,
}

/// Counters of the pager, in 2 MiB blocks unless the name states another unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PagingCounters {
    /// Taken out of guest memory.
    pub out: u64,
    /// Compressed and stored.
    pub stored: u64,
    /// Moved back before they were stored: the guest accessed them.
    pub recalled: u64,
    /// Moved back: not compressible.
    pub incompressible: u64,
    /// Not parked: the host kernel was using a page.
    pub busy: u64,
    /// Brought back on access.
    pub touched: u64,
    /// Pages of 4 KiB brought back on access, of blocks that stayed parked.
    pub pages_touched: u64,
    /// Such pages that were parked again.
    pub pages_stored: u64,
    /// Brought back ahead of access.
    pub prefetched: u64,
    /// Brought back in small pages, as parts of them were back already or given up.
    pub landed_small: u64,
    /// Given up by the guest while parked.
    pub dropped: u64,
    /// Number of times that a fault was held back because the host had too little room.
    pub held: u64,
    /// Number of times that bringing a block back had to be retried.
    pub retries: u64,
    /// Lost.
    pub lost: u64,
    /// CPU time for compression, of all threads, in nanoseconds.
    pub compress_ns: u64,
    /// Bytes compressed.
    pub compress_bytes: u64,
    /// Recompressed with the second codec.
    pub repacked: u64,
    /// Bytes saved by recompression.
    pub repack_saved_bytes: u64,
}

/// The pool of compressed pages (`GET /memory/pool`), in bytes unless the name states another unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PoolStatus {
    /// Limit on the pool.
    pub limit_bytes: u64,
    /// Memory used by compressed pages.
    pub used_bytes: u64,
    /// Highest `used_bytes`.
    pub used_max_bytes: u64,
    /// Uncompressed size, without zero pages.
    pub original_bytes: u64,
    /// Compressed size, without packing overhead.
    pub compressed_bytes: u64,
    /// Size of the pool's tables.
    pub metadata_bytes: u64,
    /// Pages of one repeated word.
    pub same_pages: u64,
    /// Pages stored uncompressed.
    pub raw_pages: u64,
    /// 4 KiB frames freed by compaction of the pool.
    pub frames_compacted: u64,
    /// 4 KiB frames moved to make room.
    pub frames_moved: u64,
    /// Share of free memory in runs smaller than 2 MiB, per mille.
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

/// Parks guest memory, compressed, in the monitor's pool; the guest gets it back on access.
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

/// Cancels the running park or unpark operation; finished blocks are not undone.
#[utoipa::path(delete, path = "/memory/park", tag = "memory",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn delete_park(State(machine): Machine) -> HandlerResult {
    done(&machine, PagingAction::Cancel).await
}

/// Brings all parked memory back.
#[utoipa::path(put, path = "/memory/unpark", tag = "memory", request_body = Unpark,
    responses((status = 200, body = UnparkReport), (status = 204, description = "The operation has started"),
              (status = 400, body = FaultMessage)))]
pub(super) async fn put_unpark(State(machine): Machine, Body(body): Body<Unpark>) -> HandlerResult {
    match machine.ask(PagingAction::Unpark(body)).await? {
        Some(PagingReply::Unparked(report)) => Ok(axum::Json(report).into_response()),
        None => Ok(http::StatusCode::NO_CONTENT.into_response()),
        Some(_) => Err(ApiError::WrongReply),
    }
}

/// Amount of parked memory and the pager's counters.
#[utoipa::path(get, path = "/memory/paging", tag = "memory",
    responses((status = 200, body = PagingStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_paging(State(machine): Machine) -> HandlerResult {
    reported!(machine, PagingAction::Get, PagingReply::Status)
}

/// The pool of parked memory.
#[utoipa::path(get, path = "/memory/pool", tag = "memory",
    responses((status = 200, body = PoolStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_pool(State(machine): Machine) -> HandlerResult {
    reported!(machine, PagingAction::Pool, PagingReply::Pool)
}
