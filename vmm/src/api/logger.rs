// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/logger`: the monitor's log.

use axum::Router;
use axum::extract::State;
use axum::routing::put;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::LoggerConfig;

/// Actions on the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoggerAction {
    /// Opens the log.
    Set(LoggerConfig),
}

impl LoggerAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::NOT_STARTED
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<LoggerAction>>;

pub(super) fn routes() -> Router<Asker<LoggerAction>> {
    Router::new().route("/logger", put(put_logger))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_logger))]
pub(super) struct Description;

/// Configures the log. Before the start only.
#[utoipa::path(put, path = "/logger", tag = "logger", request_body = LoggerConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_logger(
    State(machine): Machine,
    Body(body): Body<LoggerConfig>,
) -> HandlerResult {
    done(&machine, LoggerAction::Set(body)).await
}
