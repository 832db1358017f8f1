// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/balloon`, `/balloon/statistics`, `/balloon/hinting/{start,status,stop}`.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, patch};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Body, OptionalBody};
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;
use crate::config::{BalloonConfig, BalloonStatsUpdate, BalloonUpdate};

/// Actions on the balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BalloonAction {
    /// The section with the present target: [`BalloonReply::Config`].
    Get,
    /// Sets the section.
    Set(BalloonConfig),
    /// Sets the target.
    Update(BalloonUpdate),
    /// The device's and the guest's figures: [`BalloonReply::Statistics`].
    GetStatistics,
    /// Changes how often the guest is asked for figures.
    UpdateStatistics(BalloonStatsUpdate),
    /// Asks the guest for its free pages.
    StartHinting(HintingStart),
    /// Progress of hinting: [`BalloonReply::Hinting`].
    GetHinting,
    /// Ends hinting.
    StopHinting,
}

impl BalloonAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Get => Phases::ANY,
            Self::Set(_) => Phases::NOT_STARTED,
            Self::Update(_)
            | Self::GetStatistics
            | Self::UpdateStatistics(_)
            | Self::StartHinting(_)
            | Self::GetHinting
            | Self::StopHinting => Phases::STARTED,
        }
    }
}

/// Replies to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BalloonReply {
    /// To [`BalloonAction::Get`].
    Config(BalloonConfig),
    /// To [`BalloonAction::GetStatistics`].
    Statistics(Box<BalloonStats>),
    /// To [`BalloonAction::GetHinting`].
    Hinting(HintingStatus),
}

/// Options of a hinting run (`PATCH /balloon/hinting/start`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HintingStart {
    /// Whether the guest gets its hinted pages back as soon as it has hinted all of them.
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> Self {
        Self { acknowledge_on_stop: true }
    }
}

/// Progress of hinting (`GET /balloon/hinting/status`): command identifiers of virtio 1.3, 5.5.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct HintingStatus {
    /// The last command ID that the host sent.
    pub host_cmd: u32,
    /// The last command ID that the guest acknowledged, if any.
    pub guest_cmd: Option<u32>,
}

/// The device's and the guest's balloon statistics (`GET /balloon/statistics`).
///
/// Values that the guest has not reported are omitted. Names are Firecracker's; the guest's values
/// are in the guest's units (bytes for memory, counts for events: virtio 1.3, 5.5.6.3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct BalloonStats {
    /// Pages of 4 KiB that the balloon should hold.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it holds.
    pub actual_pages: u32,
    /// The same target, in MiB.
    pub target_mib: u32,
    /// The same size, in MiB.
    pub actual_mib: u32,
    /// Pages that the guest is taking back and waits for, as the host's pool of huge pages is empty.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiting_for_host_pages: u32,
    /// The guest's last report.
    #[serde(flatten)]
    pub guest: GuestStats,
}

/// Statistics from the guest; each is absent until the guest reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(default)]
pub struct GuestStats {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Major page faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Minor page faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Free memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// All memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Memory available to programs without swapping, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Page cache, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Successful hugetlbfs page allocations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Failed hugetlbfs page allocations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed by the OOM killer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Memory scanned in the background, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Memory scanned directly by allocating tasks, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Memory reclaimed in the background, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Memory reclaimed directly by allocating tasks, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
    /// All CMA regions, in bytes. Ballast extension, like the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_total: Option<u64>,
    /// Free CMA memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_free: Option<u64>,
    /// CMA memory allocated to devices, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_allocated: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(pages: &u32) -> bool {
    *pages == 0
}

/// How handlers reach the machine.
type Machine = State<Asker<BalloonAction, BalloonReply>>;

pub(super) fn routes() -> Router<Asker<BalloonAction, BalloonReply>> {
    Router::new()
        .route("/balloon", get(get_balloon).put(put_balloon).patch(patch_balloon))
        .route("/balloon/statistics", get(get_statistics).patch(patch_statistics))
        .route("/balloon/hinting/start", patch(start_hinting))
        .route("/balloon/hinting/status", get(get_hinting))
        .route("/balloon/hinting/stop", patch(stop_hinting))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(
    get_balloon,
    put_balloon,
    patch_balloon,
    get_statistics,
    patch_statistics,
    start_hinting,
    get_hinting,
    stop_hinting
))]
pub(super) struct Description;

/// The balloon's configuration and current target.
#[utoipa::path(get, path = "/balloon", tag = "balloon",
    responses((status = 200, body = BalloonConfig), (status = 400, body = FaultMessage)))]
pub(super) async fn get_balloon(State(machine): Machine) -> HandlerResult {
    reported!(machine, BalloonAction::Get, BalloonReply::Config)
}

/// Configures the balloon. Before the start only.
#[utoipa::path(put, path = "/balloon", tag = "balloon", request_body = BalloonConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_balloon(
    State(machine): Machine,
    Body(body): Body<BalloonConfig>,
) -> HandlerResult {
    done(&machine, BalloonAction::Set(body)).await
}

/// Sets the balloon's target. After the start only.
#[utoipa::path(patch, path = "/balloon", tag = "balloon", request_body = BalloonUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_balloon(
    State(machine): Machine,
    Body(body): Body<BalloonUpdate>,
) -> HandlerResult {
    done(&machine, BalloonAction::Update(body)).await
}

/// The device's and the guest's balloon statistics. After the start only.
#[utoipa::path(get, path = "/balloon/statistics", tag = "balloon",
    responses((status = 200, body = BalloonStats), (status = 400, body = FaultMessage)))]
pub(super) async fn get_statistics(State(machine): Machine) -> HandlerResult {
    reported!(machine, BalloonAction::GetStatistics, BalloonReply::Statistics)
}

/// Changes the polling interval for statistics. After the start only.
#[utoipa::path(patch, path = "/balloon/statistics", tag = "balloon",
    request_body = BalloonStatsUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_statistics(
    State(machine): Machine,
    Body(body): Body<BalloonStatsUpdate>,
) -> HandlerResult {
    done(&machine, BalloonAction::UpdateStatistics(body)).await
}

/// Starts a hinting run. The body is optional.
#[utoipa::path(patch, path = "/balloon/hinting/start", tag = "balloon",
    request_body = Option<HintingStart>,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn start_hinting(
    State(machine): Machine,
    OptionalBody(body): OptionalBody<HintingStart>,
) -> HandlerResult {
    done(&machine, BalloonAction::StartHinting(body)).await
}

/// Progress of the hinting run.
#[utoipa::path(get, path = "/balloon/hinting/status", tag = "balloon",
    responses((status = 200, body = HintingStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_hinting(State(machine): Machine) -> HandlerResult {
    reported!(machine, BalloonAction::GetHinting, BalloonReply::Hinting)
}

/// Stops the hinting run and returns the pages to the guest. A body is ignored.
#[utoipa::path(patch, path = "/balloon/hinting/stop", tag = "balloon",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn stop_hinting(State(machine): Machine) -> HandlerResult {
    done(&machine, BalloonAction::StopHinting).await
}
