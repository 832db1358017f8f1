// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/balloon`, `/balloon/statistics`, `/balloon/hinting/{start,status,stop}`.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, patch};

use super::action::{Action, BalloonStats, HintingStart, HintingStatus, Reply};
use super::body::{Body, OptionalBody};
use super::channel::Door;
use super::error::FaultMessage;
use super::{Answer, At, done, told};
use crate::config::{BalloonConfig, BalloonStatsUpdate, BalloonUpdate};

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/balloon", get(get_balloon).put(put_balloon).patch(patch_balloon))
        .route("/balloon/statistics", get(get_statistics).patch(patch_statistics))
        .route("/balloon/hinting/start", patch(start_hinting))
        .route("/balloon/hinting/status", get(get_hinting))
        .route("/balloon/hinting/stop", patch(stop_hinting))
}

/// The balloon as configured, with its present target.
#[utoipa::path(get, path = "/balloon", tag = "balloon",
    responses((status = 200, body = BalloonConfig), (status = 400, body = FaultMessage)))]
pub(super) async fn get_balloon(State(door): At) -> Answer {
    told!(door, Action::GetBalloon, Reply::Balloon)
}

/// Gives the machine a balloon. Before the start only.
#[utoipa::path(put, path = "/balloon", tag = "balloon", request_body = BalloonConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_balloon(State(door): At, Body(body): Body<BalloonConfig>) -> Answer {
    done(&door, Action::SetBalloon(body)).await
}

/// Gives the balloon a new target. After the start only.
#[utoipa::path(patch, path = "/balloon", tag = "balloon", request_body = BalloonUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_balloon(State(door): At, Body(body): Body<BalloonUpdate>) -> Answer {
    done(&door, Action::UpdateBalloon(body)).await
}

/// What device and guest know of the balloon. After the start only.
#[utoipa::path(get, path = "/balloon/statistics", tag = "balloon",
    responses((status = 200, body = BalloonStats), (status = 400, body = FaultMessage)))]
pub(super) async fn get_statistics(State(door): At) -> Answer {
    told!(door, Action::GetBalloonStats, Reply::BalloonStats)
}

/// Changes how often the guest is asked for statistics. After the start only.
#[utoipa::path(patch, path = "/balloon/statistics", tag = "balloon",
    request_body = BalloonStatsUpdate,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_statistics(
    State(door): At,
    Body(body): Body<BalloonStatsUpdate>,
) -> Answer {
    done(&door, Action::UpdateBalloonStats(body)).await
}

/// Asks the guest for its free pages. The body may be left out.
#[utoipa::path(patch, path = "/balloon/hinting/start", tag = "balloon",
    request_body = Option<HintingStart>,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn start_hinting(
    State(door): At,
    OptionalBody(body): OptionalBody<HintingStart>,
) -> Answer {
    done(&door, Action::StartHinting(body)).await
}

/// How far that is.
#[utoipa::path(get, path = "/balloon/hinting/status", tag = "balloon",
    responses((status = 200, body = HintingStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_hinting(State(door): At) -> Answer {
    told!(door, Action::GetHinting, Reply::Hinting)
}

/// Ends it, and gives the guest its pages back. A body is ignored.
#[utoipa::path(patch, path = "/balloon/hinting/stop", tag = "balloon",
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn stop_hinting(State(door): At) -> Answer {
    done(&door, Action::StopHinting).await
}
