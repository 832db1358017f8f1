// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/boot-source`: what the guest boots.

use axum::Router;
use axum::extract::State;
use axum::routing::put;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::BootSource;

/// Actions on the boot source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootAction {
    /// Sets the section.
    Set(BootSource),
}

impl BootAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::NOT_STARTED
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<BootAction>>;

pub(super) fn routes() -> Router<Asker<BootAction>> {
    Router::new().route("/boot-source", put(put_boot_source))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_boot_source))]
pub(super) struct Description;

/// Sets kernel, initrd and command line. Before the start only.
#[utoipa::path(put, path = "/boot-source", tag = "machine", request_body = BootSource,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_boot_source(
    State(machine): Machine,
    Body(body): Body<BootSource>,
) -> HandlerResult {
    done(&machine, BootAction::Set(body)).await
}
