// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/machine-config`: vCPUs and the size of memory.

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, deprecated_if, done, reported};
use super::phase::Phases;
use crate::config::{MachineConfig, MachineUpdate};

/// Actions on vCPUs and memory size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineAction {
    /// The section: [`MachineReply`].
    Get,
    /// Sets the section.
    Set(MachineConfig),
    /// Changes some of its fields.
    Update(MachineUpdate),
}

impl MachineAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Get => Phases::ANY,
            Self::Set(_) | Self::Update(_) => Phases::NOT_STARTED,
        }
    }
}

/// Reply to [`MachineAction::Get`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineReply(pub MachineConfig);

/// How handlers reach the machine.
type Machine = State<Asker<MachineAction, MachineReply>>;

pub(super) fn routes() -> Router<Asker<MachineAction, MachineReply>> {
    Router::new().route("/machine-config", get(get_machine).put(put_machine).patch(patch_machine))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_machine, put_machine, patch_machine))]
pub(super) struct Description;

/// vCPUs and memory size.
#[utoipa::path(get, path = "/machine-config", tag = "machine",
    responses((status = 200, body = MachineConfig)))]
pub(super) async fn get_machine(State(machine): Machine) -> HandlerResult {
    reported!(machine, MachineAction::Get, MachineReply)
}

/// Sets vCPUs and memory size. Before the start only.
#[utoipa::path(put, path = "/machine-config", tag = "machine", request_body = MachineConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_machine(
    State(machine): Machine,
    Body(body): Body<MachineConfig>,
) -> HandlerResult {
    let uses_template = body.cpu_template.is_named();
    deprecated_if(uses_template, done(&machine, MachineAction::Set(body)).await)
}

/// Changes the fields that are given. Before the start only.
#[utoipa::path(patch, path = "/machine-config", tag = "machine", request_body = MachineUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_machine(
    State(machine): Machine,
    Body(body): Body<MachineUpdate>,
) -> HandlerResult {
    let uses_template = body.cpu_template.is_some();
    deprecated_if(uses_template, done(&machine, MachineAction::Update(body)).await)
}
