// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/evacuate`: blocks that the guest is asked to give up whole. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::routing::put;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, reported};
use super::phase::Phases;

/// Actions that evacuate blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvacuationAction {
    /// Evacuates blocks: [`EvacuationReply`], when the guest has answered.
    Evacuate(Evacuate),
}

impl EvacuationAction {
    /// The phases in which this may be asked: a paused guest cannot answer.
    pub const fn legal_in(&self) -> Phases {
        Phases::RUNNING
    }
}

/// Reply to [`EvacuationAction::Evacuate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvacuationReply(pub Evacuation);

/// Blocks to evacuate (`PUT /memory/evacuate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Evacuate {
    /// Guest-physical address of the first block: a multiple of 2 MiB.
    pub start: u64,
    /// Number of blocks of 2 MiB.
    pub blocks: u32,
}

/// Result of an evacuation, as reported by the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Evacuation {
    /// Blocks that were evacuated and given up.
    pub evacuated: u32,
    /// Blocks with pages that could not be moved.
    pub busy: u32,
    /// Pages moved that belong to programs or the page cache.
    pub migrated_lru: u64,
    /// Pages of the balloon moved.
    pub migrated_balloon: u64,
    /// Pages of compressed memory moved.
    pub migrated_zsmalloc: u64,
    /// Pages of GPU buffers moved.
    pub migrated_gpu: u64,
    /// Result for each block, in order.
    pub per_block: Vec<BlockOutcome>,
}

/// Result for one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockOutcome {
    /// Emptied and given up.
    Evacuated,
    /// Something in it could not be moved.
    Busy,
    /// Not memory of the guest's.
    NotMemory,
    /// The guest did not answer in time, or not truthfully.
    Unanswered,
}

/// How handlers reach the machine.
type Machine = State<Asker<EvacuationAction, EvacuationReply>>;

pub(super) fn routes() -> Router<Asker<EvacuationAction, EvacuationReply>> {
    Router::new().route("/memory/evacuate", put(put_evacuate))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_evacuate))]
pub(super) struct Description;

/// Asks the guest to evacuate blocks and give them up; responds when the guest has finished.
#[utoipa::path(put, path = "/memory/evacuate", tag = "memory", request_body = Evacuate,
    responses((status = 200, body = Evacuation), (status = 400, body = FaultMessage)))]
pub(super) async fn put_evacuate(
    State(machine): Machine,
    Body(body): Body<Evacuate>,
) -> HandlerResult {
    reported!(machine, EvacuationAction::Evacuate(body), EvacuationReply)
}
