// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/`, `/version`, `/actions`, `/vm`, `/vm/config`: the machine as a whole.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, patch, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::action::{Action, Instance, Reply};
use super::body::Body;
use super::channel::Door;
use super::error::FaultMessage;
use super::{Answer, At, FIRECRACKER_API_VERSION, done, told};
use crate::config::VmConfig;

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/", get(get_instance))
        .route("/version", get(get_version))
        .route("/actions", put(put_action))
        .route("/vm", patch(patch_vm))
        .route("/vm/config", get(get_config))
}

/// Who this is and in which phase its machine is.
#[utoipa::path(get, path = "/", tag = "instance",
    responses((status = 200, body = Instance)))]
pub(super) async fn get_instance(State(door): At) -> Answer {
    told!(door, Action::GetInstance, Reply::Instance)
}

/// Versions (`GET /version`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct Versions {
    /// Version of Firecracker's API that this one follows.
    pub firecracker_version: String,
    /// Version of Ballast.
    pub ballast_version: String,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            firecracker_version: FIRECRACKER_API_VERSION.to_owned(),
            ballast_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Versions of the API and of Ballast.
#[utoipa::path(get, path = "/version", tag = "instance",
    responses((status = 200, body = Versions)))]
pub(super) async fn get_version() -> Answer {
    Ok(Json(Versions::default()).into_response())
}

/// Something to do once (`PUT /actions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InstanceAction {
    /// What.
    pub action_type: ActionType,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) enum ActionType {
    /// Build the machine and let it run.
    InstanceStart,
    /// Write a line to the metrics file.
    FlushMetrics,
    /// Press Ctrl+Alt+Del.
    SendCtrlAltDel,
    /// End the monitor, and the machine with it, at once. Ours.
    InstanceStop,
}

/// Starts the machine, or does something else once.
#[utoipa::path(put, path = "/actions", tag = "instance", request_body = InstanceAction,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_action(State(door): At, Body(body): Body<InstanceAction>) -> Answer {
    let action = match body.action_type {
        ActionType::InstanceStart => Action::Start,
        ActionType::FlushMetrics => Action::FlushMetrics,
        ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        ActionType::InstanceStop => Action::Stop,
    };
    done(&door, action).await
}

/// Whether vCPUs run (`PATCH /vm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VmUpdate {
    /// The state to bring the machine to.
    pub state: VmState,
}

/// Whether vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) enum VmState {
    /// They stand still.
    Paused,
    /// They run.
    Resumed,
}

/// Pauses or resumes.
#[utoipa::path(patch, path = "/vm", tag = "instance", request_body = VmUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_vm(State(door): At, Body(body): Body<VmUpdate>) -> Answer {
    let action = match body.state {
        VmState::Paused => Action::Pause,
        VmState::Resumed => Action::Resume,
    };
    done(&door, action).await
}

/// The whole configuration, as `--config-file` takes it.
#[utoipa::path(get, path = "/vm/config", tag = "instance",
    responses((status = 200, body = VmConfig)))]
pub(super) async fn get_config(State(door): At) -> Answer {
    told!(door, Action::GetConfig, Reply::Config)
}
