// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/vsock`: streams between programs in the guest and programs on the host.

use axum::Router;
use axum::extract::State;
use axum::routing::put;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, deprecated_if, done};
use super::phase::Phases;
use crate::config::VsockConfig;

/// Actions on the socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockAction {
    /// Sets the section.
    Set(VsockConfig),
}

impl VsockAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::NOT_STARTED
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<VsockAction>>;

pub(super) fn routes() -> Router<Asker<VsockAction>> {
    // One client appends the device's name, which Firecracker overlooks.
    Router::new().route("/vsock", put(put_vsock)).route("/vsock/{id}", put(put_vsock))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_vsock))]
pub(super) struct Description;

/// Adds a vsock device. Before the start only.
#[utoipa::path(put, path = "/vsock", tag = "vsock", request_body = VsockConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_vsock(
    State(machine): Machine,
    Body(body): Body<VsockConfig>,
) -> HandlerResult {
    let named = body.vsock_id.is_some();
    deprecated_if(named, done(&machine, VsockAction::Set(body)).await)
}
