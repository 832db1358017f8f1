// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/logger` and `/metrics`: how the monitor is watched.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};

use super::action::{Action, Reply};
use super::body::Body;
use super::channel::Door;
use super::error::FaultMessage;
use super::{Answer, At, done, told};
use crate::config::{LoggerConfig, MetricsConfig};

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/logger", put(put_logger))
        .route("/metrics", get(get_metrics).put(put_metrics))
}

/// Opens the log. Before the start only.
#[utoipa::path(put, path = "/logger", tag = "observe", request_body = LoggerConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_logger(State(door): At, Body(body): Body<LoggerConfig>) -> Answer {
    done(&door, Action::SetLogger(body)).await
}

/// All counters since the start. Ours.
#[utoipa::path(get, path = "/metrics", tag = "observe",
    responses((status = 200, body = Object)))]
pub(super) async fn get_metrics(State(door): At) -> Answer {
    told!(door, Action::GetMetrics, Reply::Metrics)
}

/// Opens the metrics file. Before the start only, and once.
#[utoipa::path(put, path = "/metrics", tag = "observe", request_body = MetricsConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_metrics(State(door): At, Body(body): Body<MetricsConfig>) -> Answer {
    done(&door, Action::SetMetrics(body)).await
}
