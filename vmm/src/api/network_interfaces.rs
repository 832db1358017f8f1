// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/network-interfaces/{id}`: network cards.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::put;

use super::body::Body;
use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::{NetworkInterfaceConfig, NetworkInterfaceUpdate};

/// Actions on network cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkAction {
    /// Adds a network card, or replaces the one of its name.
    Set(NetworkInterfaceConfig),
    /// Changes a network card that the guest has.
    Update(NetworkInterfaceUpdate),
    /// Removes a network interface from a running guest.
    Remove(String),
}

impl NetworkAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Set(_) => Phases::NOT_STARTED,
            Self::Update(_) | Self::Remove(_) => Phases::STARTED,
        }
    }
}

/// How handlers reach the machine.
type Machine = State<Asker<NetworkAction>>;

pub(super) fn routes() -> Router<Asker<NetworkAction>> {
    Router::new().route(
        "/network-interfaces/{id}",
        put(put_interface).patch(patch_interface).delete(delete_interface),
    )
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_interface, patch_interface, delete_interface))]
pub(super) struct Description;

/// Adds or replaces a network interface. Before the start only.
#[utoipa::path(put, path = "/network-interfaces/{id}", tag = "network", request_body = NetworkInterfaceConfig,
    params(("id" = String, Path, description = "The same as `iface_id`")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_interface(
    State(machine): Machine,
    Path(id): Path<String>,
    Body(body): Body<NetworkInterfaceConfig>,
) -> HandlerResult {
    ApiError::check_id(&id, &body.iface_id)?;
    done(&machine, NetworkAction::Set(body)).await
}

/// Changes a network interface's limits. After the start only.
#[utoipa::path(patch, path = "/network-interfaces/{id}", tag = "network", request_body = NetworkInterfaceUpdate,
    params(("id" = String, Path, description = "The same as `iface_id`")),
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn patch_interface(
    State(machine): Machine,
    Path(id): Path<String>,
    Body(body): Body<NetworkInterfaceUpdate>,
) -> HandlerResult {
    ApiError::check_id(&id, &body.iface_id)?;
    done(&machine, NetworkAction::Update(body)).await
}

/// Removes a network interface: not supported, as it needs PCI.
#[utoipa::path(delete, path = "/network-interfaces/{id}", tag = "network",
    params(("id" = String, Path, description = "Name of the network interface")),
    responses((status = 400, body = FaultMessage)))]
pub(super) async fn delete_interface(
    State(machine): Machine,
    Path(id): Path<String>,
) -> HandlerResult {
    done(&machine, NetworkAction::Remove(id)).await
}
