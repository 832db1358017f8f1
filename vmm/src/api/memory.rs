// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory`, `/memory/evacuate`: what guest memory is made of on the host. Ours.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};

use super::action::{Action, Evacuate, Evacuation, MemoryStatus, Reply};
use super::body::Body;
use super::channel::Door;
use super::error::FaultMessage;
use super::{Answer, At, done, told};
use crate::config::MemoryConfig;

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/memory", get(get_memory).put(put_memory))
        .route("/memory/evacuate", put(put_evacuate))
}

/// What guest memory is made of now. After the start only.
#[utoipa::path(get, path = "/memory", tag = "memory",
    responses((status = 200, body = MemoryStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_memory(State(door): At) -> Answer {
    told!(door, Action::GetMemory, Reply::Memory)
}

/// Sets what guest memory is made of. Before the start only.
#[utoipa::path(put, path = "/memory", tag = "memory", request_body = MemoryConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_memory(State(door): At, Body(body): Body<MemoryConfig>) -> Answer {
    done(&door, Action::SetMemory(body)).await
}

/// Has the guest empty blocks and give them up; answers when the guest has.
#[utoipa::path(put, path = "/memory/evacuate", tag = "memory", request_body = Evacuate,
    responses((status = 200, body = Evacuation), (status = 400, body = FaultMessage)))]
pub(super) async fn put_evacuate(State(door): At, Body(body): Body<Evacuate>) -> Answer {
    told!(door, Action::Evacuate(body), Reply::Evacuation)
}
