// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory`: how guest memory is backed on the host. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;
use crate::config::{BackingKind, MemoryConfig};

/// Actions on guest memory as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryAction {
    /// Its current state: [`MemoryReply`].
    Get,
    /// Sets the section.
    Set(MemoryConfig),
}

impl MemoryAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Get => Phases::STARTED,
            Self::Set(_) => Phases::NOT_STARTED,
        }
    }
}

/// Reply to [`MemoryAction::Get`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryReply(pub MemoryStatus);

/// State of guest memory (`GET /memory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryStatus {
    /// Kind of host memory.
    pub backing: BackingKind,
    /// Size of the CMA region.
    pub cma_bytes: u64,
    /// Size of guest memory.
    pub total_bytes: u64,
    /// Resident guest memory.
    pub resident_bytes: u64,
    /// Resident memory that is mapped by huge pages; `null` if the kernel cannot report it.
    pub huge_bytes: Option<u64>,
    /// Memory in the balloon, by the device's record.
    pub ballooned_bytes: u64,
}

/// How handlers reach the machine.
type Machine = State<Asker<MemoryAction, MemoryReply>>;

pub(super) fn routes() -> Router<Asker<MemoryAction, MemoryReply>> {
    Router::new().route("/memory", get(get_memory).put(put_memory))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_memory, put_memory))]
pub(super) struct Description;

/// State of guest memory. After the start only.
#[utoipa::path(get, path = "/memory", tag = "memory",
    responses((status = 200, body = MemoryStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_memory(State(machine): Machine) -> HandlerResult {
    reported!(machine, MemoryAction::Get, MemoryReply)
}

/// Configures guest memory. Before the start only.
#[utoipa::path(put, path = "/memory", tag = "memory", request_body = MemoryConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_memory(
    State(machine): Machine,
    Body(body): Body<MemoryConfig>,
) -> HandlerResult {
    done(&machine, MemoryAction::Set(body)).await
}
