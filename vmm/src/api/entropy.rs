// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/entropy`: the guest's source of random numbers.

use axum::Router;
use axum::extract::State;
use axum::routing::put;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::EntropyConfig;

/// Actions on the entropy device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntropyAction {
    /// Sets the section.
    Set(EntropyConfig),
}

impl EntropyAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::NOT_STARTED
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<EntropyAction>>;

pub(super) fn routes() -> Router<Asker<EntropyAction>> {
    Router::new().route("/entropy", put(put_entropy))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_entropy))]
pub(super) struct Description;

/// Adds an entropy device. Before the start only.
#[utoipa::path(put, path = "/entropy", tag = "entropy", request_body = EntropyConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_entropy(
    State(machine): Machine,
    Body(body): Body<EntropyConfig>,
) -> HandlerResult {
    done(&machine, EntropyAction::Set(body)).await
}
