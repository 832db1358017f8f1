// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/machine-config` and `/boot-source`: what is to be started.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};

use super::action::{Action, Reply};
use super::body::Body;
use super::channel::Door;
use super::error::FaultMessage;
use super::{Answer, At, done, told};
use crate::config::{BootSource, MachineConfig, MachineUpdate};

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/machine-config", get(get_machine).put(put_machine).patch(patch_machine))
        .route("/boot-source", put(put_boot_source))
}

/// vCPUs and memory size.
#[utoipa::path(get, path = "/machine-config", tag = "machine",
    responses((status = 200, body = MachineConfig)))]
pub(super) async fn get_machine(State(door): At) -> Answer {
    told!(door, Action::GetMachine, Reply::Machine)
}

/// Sets vCPUs and memory size. Before the start only.
#[utoipa::path(put, path = "/machine-config", tag = "machine", request_body = MachineConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_machine(State(door): At, Body(body): Body<MachineConfig>) -> Answer {
    done(&door, Action::SetMachine(body)).await
}

/// Changes the fields that are given. Before the start only.
#[utoipa::path(patch, path = "/machine-config", tag = "machine", request_body = MachineUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_machine(State(door): At, Body(body): Body<MachineUpdate>) -> Answer {
    done(&door, Action::UpdateMachine(body)).await
}

/// Sets kernel, initrd and command line. Before the start only.
#[utoipa::path(put, path = "/boot-source", tag = "machine", request_body = BootSource,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_boot_source(State(door): At, Body(body): Body<BootSource>) -> Answer {
    done(&door, Action::SetBootSource(body)).await
}
