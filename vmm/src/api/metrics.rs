// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/metrics`: the monitor's counters.

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;
use crate::config::MetricsConfig;

/// Actions on counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAction {
    /// All counters since the start: [`MetricsReply`].
    Get,
    /// Opens the metrics file.
    Set(MetricsConfig),
}

impl MetricsAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Get => Phases::ANY,
            Self::Set(_) => Phases::NOT_STARTED,
        }
    }
}

/// Reply to [`MetricsAction::Get`]: groups of counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsReply(pub serde_json::Value);

/// How handlers reach the machine.
type Machine = State<Asker<MetricsAction, MetricsReply>>;

pub(super) fn routes() -> Router<Asker<MetricsAction, MetricsReply>> {
    Router::new().route("/metrics", get(get_metrics).put(put_metrics))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_metrics, put_metrics))]
pub(super) struct Description;

/// All counters since the start. Ballast extension.
#[utoipa::path(get, path = "/metrics", tag = "metrics",
    responses((status = 200, body = Object)))]
pub(super) async fn get_metrics(State(machine): Machine) -> HandlerResult {
    reported!(machine, MetricsAction::Get, MetricsReply)
}

/// Configures the metrics file. Once only, before the start.
#[utoipa::path(put, path = "/metrics", tag = "metrics", request_body = MetricsConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_metrics(
    State(machine): Machine,
    Body(body): Body<MetricsConfig>,
) -> HandlerResult {
    done(&machine, MetricsAction::Set(body)).await
}
