// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/gpu`, `/gpu/scanouts/{n}`: the display device and what it shows. Ours.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use devices::display::encode_png;
use http::header::CONTENT_TYPE;

use super::action::{Action, GpuStatus, Refusal, Reply, ScanoutUpdate};
use super::body::Body;
use super::channel::Door;
use super::error::{ApiError, FaultMessage};
use super::{Answer, At, done, told};
use crate::config::GpuConfig;

pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/gpu", get(get_gpu).put(put_gpu))
        .route("/gpu/scanouts/{n}", get(get_scanout).patch(patch_scanout))
}

/// Scanouts, resources and counters. After the start only.
#[utoipa::path(get, path = "/gpu", tag = "gpu",
    responses((status = 200, body = GpuStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_gpu(State(door): At) -> Answer {
    told!(door, Action::GetGpu, Reply::Gpu)
}

/// Gives the machine a display. Before the start only.
#[utoipa::path(put, path = "/gpu", tag = "gpu", request_body = GpuConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_gpu(State(door): At, Body(body): Body<GpuConfig>) -> Answer {
    done(&door, Action::SetGpu(body)).await
}

/// What a scanout shows, with the cursor, as a PNG. After the start only.
#[utoipa::path(get, path = "/gpu/scanouts/{n}", tag = "gpu",
    params(("n" = u32, Path, description = "Number of the scanout, from 0")),
    responses((status = 200, content_type = "image/png", body = Vec<u8>),
        (status = 400, body = FaultMessage)))]
pub(super) async fn get_scanout(State(door): At, Path(n): Path<String>) -> Answer {
    let Reply::Picture(snapshot) = door.ask(Action::GetScanout(number(&n)?)).await? else {
        return Err(ApiError::WrongReply);
    };
    // Here and not where devices are served: it takes milliseconds.
    let png = encode_png(&snapshot.composed())
        .map_err(|error| ApiError::Refused(Refusal::Failed(error.to_string())))?;
    Ok(([(CONTENT_TYPE, "image/png")], png).into_response())
}

/// Changes a scanout's mode, or unplugs it; the guest hears of it. After the start only.
#[utoipa::path(patch, path = "/gpu/scanouts/{n}", tag = "gpu", request_body = ScanoutUpdate,
    params(("n" = u32, Path, description = "Number of the scanout, from 0")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_scanout(
    State(door): At,
    Path(n): Path<String>,
    Body(body): Body<ScanoutUpdate>,
) -> Answer {
    done(&door, Action::UpdateScanout(number(&n)?, body)).await
}

fn number(n: &str) -> Result<u32, ApiError> {
    n.parse().map_err(|_| ApiError::Refused(Refusal::NoScanout(n.to_owned())))
}
