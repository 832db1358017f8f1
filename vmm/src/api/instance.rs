// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/`, `/version`, `/actions`, `/vm`, `/vm/config`: the machine as a whole.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, patch, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::{Phase, Phases};
use crate::config::VmConfig;

/// Version of Firecracker's API that this one follows, as its clients ask for it.
pub const FIRECRACKER_API_VERSION: &str = "1.17.0";

/// Actions on the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceAction {
    /// Name, version and phase: [`InstanceReply::Instance`].
    Get,
    /// The whole configuration: [`InstanceReply::Config`].
    GetConfig,
    /// Builds the machine and starts its vCPUs.
    Start,
    /// Pauses all vCPUs.
    Pause,
    /// Resumes them.
    Resume,
    /// Presses Ctrl+Alt+Del.
    SendCtrlAltDel,
    /// Writes a line to the metrics file.
    FlushMetrics,
    /// Stops the monitor and its machine immediately.
    Stop,
}

impl InstanceAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Start => Phases::NOT_STARTED,
            Self::Pause | Self::Resume | Self::SendCtrlAltDel | Self::FlushMetrics => {
                Phases::STARTED
            }
            Self::Get | Self::GetConfig | Self::Stop => Phases::ANY,
        }
    }
}

/// Replies to them.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceReply {
    /// To [`InstanceAction::Get`].
    Instance(Instance),
    /// To [`InstanceAction::GetConfig`].
    Config(Box<VmConfig>),
}

/// The instance (`GET /`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Instance {
    /// `Ballast`.
    pub app_name: String,
    /// The value of `--id`.
    pub id: String,
    /// Phase of the machine's life.
    pub state: Phase,
    /// Version of Ballast.
    pub vmm_version: String,
}

/// How handlers reach the machine.
type Machine = State<Asker<InstanceAction, InstanceReply>>;

pub(super) fn routes() -> Router<Asker<InstanceAction, InstanceReply>> {
    Router::new()
        .route("/", get(get_instance))
        .route("/version", get(get_version))
        .route("/actions", put(put_action))
        .route("/vm", patch(patch_vm))
        .route("/vm/config", get(get_config))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_instance, get_version, put_action, patch_vm, get_config))]
pub(super) struct Description;

/// The instance and the phase of its machine.
#[utoipa::path(get, path = "/", tag = "instance",
    responses((status = 200, body = Instance)))]
pub(super) async fn get_instance(State(machine): Machine) -> HandlerResult {
    reported!(machine, InstanceAction::Get, InstanceReply::Instance)
}

/// Versions (`GET /version`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
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
pub(super) async fn get_version() -> HandlerResult {
    Ok(Json(Versions::default()).into_response())
}

/// A one-time action (`PUT /actions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InstanceActionInfo {
    /// What.
    pub action_type: ActionType,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) enum ActionType {
    /// Build the machine and let it run.
    InstanceStart,
    /// Write a line to the metrics file.
    FlushMetrics,
    /// Press Ctrl+Alt+Del.
    SendCtrlAltDel,
    /// Stop the monitor and its machine immediately. Ballast extension.
    InstanceStop,
}

/// Starts the machine, or performs another one-time action.
#[utoipa::path(put, path = "/actions", tag = "instance", request_body = InstanceActionInfo,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_action(
    State(machine): Machine,
    Body(body): Body<InstanceActionInfo>,
) -> HandlerResult {
    let action = match body.action_type {
        ActionType::InstanceStart => InstanceAction::Start,
        ActionType::FlushMetrics => InstanceAction::FlushMetrics,
        ActionType::SendCtrlAltDel => InstanceAction::SendCtrlAltDel,
        ActionType::InstanceStop => InstanceAction::Stop,
    };
    done(&machine, action).await
}

/// Whether vCPUs run (`PATCH /vm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VmUpdate {
    /// The state to bring the machine to.
    pub state: VmState,
}

/// Whether vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) enum VmState {
    /// They stand still.
    Paused,
    /// They run.
    Resumed,
}

/// Pauses or resumes.
#[utoipa::path(patch, path = "/vm", tag = "instance", request_body = VmUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_vm(State(machine): Machine, Body(body): Body<VmUpdate>) -> HandlerResult {
    let action = match body.state {
        VmState::Paused => InstanceAction::Pause,
        VmState::Resumed => InstanceAction::Resume,
    };
    done(&machine, action).await
}

/// The whole configuration, as `--config-file` takes it.
#[utoipa::path(get, path = "/vm/config", tag = "instance",
    responses((status = 200, body = VmConfig)))]
pub(super) async fn get_config(State(machine): Machine) -> HandlerResult {
    reported!(machine, InstanceAction::GetConfig, InstanceReply::Config)
}
