// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/drives/{id}`: disks.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::put;

use super::body::Body;
use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::{DriveConfig, DriveUpdate};

/// Actions on disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveAction {
    /// Adds a disk, or replaces the one of its name.
    Set(DriveConfig),
    /// Changes a disk that the guest has.
    Update(DriveUpdate),
    /// Removes a disk from a running guest.
    Remove(String),
}

impl DriveAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Set(_) => Phases::NOT_STARTED,
            Self::Update(_) | Self::Remove(_) => Phases::STARTED,
        }
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<DriveAction>>;

pub(super) fn routes() -> Router<Asker<DriveAction>> {
    Router::new().route("/drives/{id}", put(put_drive).patch(patch_drive).delete(delete_drive))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_drive, patch_drive, delete_drive))]
pub(super) struct Description;

/// Adds or replaces a disk. Before the start only.
#[utoipa::path(put, path = "/drives/{id}", tag = "drives", request_body = DriveConfig,
    params(("id" = String, Path, description = "The same as `drive_id`")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_drive(
    State(machine): Machine,
    Path(id): Path<String>,
    Body(body): Body<DriveConfig>,
) -> HandlerResult {
    ApiError::check_id(&id, &body.drive_id)?;
    done(&machine, DriveAction::Set(body)).await
}

/// Changes a disk's image or limits. After the start only; the guest is notified of a new size.
#[utoipa::path(patch, path = "/drives/{id}", tag = "drives", request_body = DriveUpdate,
    params(("id" = String, Path, description = "The same as `drive_id`")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_drive(
    State(machine): Machine,
    Path(id): Path<String>,
    Body(body): Body<DriveUpdate>,
) -> HandlerResult {
    ApiError::check_id(&id, &body.drive_id)?;
    done(&machine, DriveAction::Update(body)).await
}

/// Removes a disk: not supported, as it needs PCI.
#[utoipa::path(delete, path = "/drives/{id}", tag = "drives",
    params(("id" = String, Path, description = "Name of the disk")),
    responses((status = 400, body = FaultMessage)))]
pub(super) async fn delete_drive(State(machine): Machine, Path(id): Path<String>) -> HandlerResult {
    done(&machine, DriveAction::Remove(id)).await
}
