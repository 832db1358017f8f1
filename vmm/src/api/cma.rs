// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/cma`: the contiguous region. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::compaction::MemoryTotals;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, reported};
use super::phase::Phases;

/// Actions on the CMA region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmaAction {
    /// Its state: [`CmaReply`].
    Get,
}

impl CmaAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::STARTED
    }
}

/// Reply to [`CmaAction::Get`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmaReply(pub CmaStatus);

/// The CMA region (`GET /memory/cma`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CmaStatus {
    /// Guest-physical address of its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its host-side state, in bytes.
    #[serde(flatten)]
    pub totals: MemoryTotals,
    /// The guest's figures; absent if the guest reports none or reports invalid ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<CmaUse>,
}

/// The guest's last report about its CMA memory, in bytes, from the balloon's statistics. These
/// figures are not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CmaUse {
    /// All CMA regions of the guest, including those named on its command line.
    pub total_bytes: u64,
    /// Unused.
    pub free_bytes: u64,
    /// In use by movable pages.
    pub lent_bytes: u64,
    /// Allocated to devices as contiguous memory.
    pub contiguous_bytes: u64,
    /// Age of the report, in milliseconds.
    pub age_ms: u64,
}

/// How handlers reach the machine.
type Machine = State<Asker<CmaAction, CmaReply>>;

pub(super) fn routes() -> Router<Asker<CmaAction, CmaReply>> {
    Router::new().route("/memory/cma", get(get_cma))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_cma))]
pub(super) struct Description;

/// The CMA region: the host's view and the guest's report.
#[utoipa::path(get, path = "/memory/cma", tag = "memory",
    responses((status = 200, body = CmaStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_cma(State(machine): Machine) -> HandlerResult {
    reported!(machine, CmaAction::Get, CmaReply)
}
