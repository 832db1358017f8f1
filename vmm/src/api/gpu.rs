// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/gpu`, `/gpu/scanouts/{n}`: the display device and its pictures. Ballast extension.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use devices::display::PngFile;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;
use super::refusal::Refusal;
use crate::config::GpuConfig;

/// Actions on the display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuAction {
    /// Scanouts, resources and counters: [`GpuReply::Status`].
    Get,
    /// Sets the section.
    Set(GpuConfig),
    /// The picture on a scanout: [`GpuReply::Picture`].
    GetScanout(u32),
    /// Changes a scanout's mode.
    UpdateScanout(u32, ScanoutUpdate),
}

impl GpuAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Set(_) => Phases::NOT_STARTED,
            Self::Get | Self::GetScanout(_) | Self::UpdateScanout(..) => Phases::STARTED,
        }
    }
}

/// Replies to them.
#[derive(Debug, Clone, PartialEq)]
pub enum GpuReply {
    /// To [`GpuAction::Get`].
    Status(Box<GpuStatus>),
    /// To [`GpuAction::GetScanout`].
    Picture(Camera),
}

/// Captures a picture and encodes it as PNG on the calling thread, which takes as long as copying
/// and compressing it.
#[derive(Clone)]
pub struct Camera(Arc<dyn Fn() -> Result<PngFile, String> + Send + Sync>);

impl Camera {
    /// A camera that calls `take`.
    pub fn new(take: impl Fn() -> Result<PngFile, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Takes a picture.
    ///
    /// # Errors
    ///
    /// Why no picture can be captured: nothing is displayed, or there is too little memory.
    pub fn take(&self) -> Result<PngFile, String> {
        (self.0)()
    }
}

impl fmt::Debug for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Camera")
    }
}

impl PartialEq for Camera {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The display (`GET /gpu`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuStatus {
    /// Scanouts by number.
    pub scanouts: Vec<ScanoutStatus>,
    /// 2D resources.
    pub images: Resources,
    /// Blobs in guest memory.
    pub guest_blobs: Resources,
    /// Blobs in host memory.
    pub host_blobs: Resources,
    /// Guest memory that backs resources, in bytes.
    pub backing_bytes: u64,
    /// Number of contiguous runs in it.
    pub backing_runs: u64,
    /// Pages of it in the CMA region.
    pub cma_pages: u64,
    /// Host memory in use, in bytes.
    pub host_bytes: u64,
    /// Host memory mapped into the guest, in bytes.
    pub mapped_bytes: u64,
    /// Counters since the start.
    pub counters: GpuCounters,
}

/// One scanout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScanoutStatus {
    /// The mode offered to the guest; `null` if unplugged.
    pub mode: Option<Mode>,
    /// Size of the displayed picture; `null` if none is displayed.
    pub shows: Option<Mode>,
}

/// Resources of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// How many.
    pub count: u64,
    /// Their total size, in bytes.
    pub bytes: u64,
}

/// Counters of the display since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuCounters {
    /// Commands answered.
    pub commands: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Transfers to the host.
    pub transfers: u64,
    /// Bytes copied by transfers.
    pub transfer_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Migrations of backing pages.
    pub migrations: u64,
    /// Migrations that were rejected.
    pub migrations_failed: u64,
    /// Pages migrated.
    pub migrated_pages: u64,
}

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mode {
    /// Width, in pixels.
    pub width_px: u32,
    /// Height, in pixels.
    pub height_px: u32,
}

/// Changes to a scanout (`PATCH /gpu/scanouts/{n}`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScanoutUpdate {
    /// The mode to offer the guest; `null` unplugs the scanout. Required.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    pub mode: Option<Mode>,
}

/// How handlers reach the machine.
type Machine = State<Asker<GpuAction, GpuReply>>;

pub(super) fn routes() -> Router<Asker<GpuAction, GpuReply>> {
    Router::new()
        .route("/gpu", get(get_gpu).put(put_gpu))
        .route("/gpu/scanouts/{n}", get(get_scanout).patch(patch_scanout))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_gpu, put_gpu, get_scanout, patch_scanout))]
pub(super) struct Description;

/// Scanouts, resources and counters. After the start only.
#[utoipa::path(get, path = "/gpu", tag = "gpu",
    responses((status = 200, body = GpuStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_gpu(State(machine): Machine) -> HandlerResult {
    reported!(machine, GpuAction::Get, GpuReply::Status)
}

/// Configures the display. Before the start only.
#[utoipa::path(put, path = "/gpu", tag = "gpu", request_body = GpuConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_gpu(State(machine): Machine, Body(body): Body<GpuConfig>) -> HandlerResult {
    done(&machine, GpuAction::Set(body)).await
}

/// The picture on a scanout, with the cursor, as PNG. After the start only.
#[utoipa::path(get, path = "/gpu/scanouts/{n}", tag = "gpu",
    params(("n" = u32, Path, description = "Number of the scanout, from 0")),
    responses((status = 200, content_type = "image/png", body = Vec<u8>),
        (status = 400, body = FaultMessage)))]
pub(super) async fn get_scanout(State(machine): Machine, Path(n): Path<String>) -> HandlerResult {
    let action = GpuAction::GetScanout(number(&n)?);
    let Some(GpuReply::Picture(camera)) = machine.ask(action).await? else {
        return Err(ApiError::WrongReply);
    };
    // On this thread and not on the devices' thread, as it takes milliseconds.
    let png = camera.take().map_err(|error| ApiError::Refused(Refusal::Failed(error)))?;
    // The file stays charged to its budget until it is sent.
    Ok(([(CONTENT_TYPE, "image/png")], Bytes::from_owner(png)).into_response())
}

/// Changes a scanout's mode or unplugs it, and notifies the guest. After the start only.
#[utoipa::path(patch, path = "/gpu/scanouts/{n}", tag = "gpu", request_body = ScanoutUpdate,
    params(("n" = u32, Path, description = "Number of the scanout, from 0")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_scanout(
    State(machine): Machine,
    Path(n): Path<String>,
    Body(body): Body<ScanoutUpdate>,
) -> HandlerResult {
    done(&machine, GpuAction::UpdateScanout(number(&n)?, body)).await
}

fn number(n: &str) -> Result<u32, ApiError> {
    n.parse().map_err(|_| ApiError::Refused(Refusal::NoScanout(n.to_owned())))
}
