// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/mmds`: the metadata that the guest can read, and `/mmds/config`: where.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use serde_json::Value;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, deprecated_if, done, reported};
use super::phase::Phases;
use crate::config::{MmdsConfig, MmdsVersion};

/// Actions on the metadata service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MmdsAction {
    /// Reports the metadata.
    Get,
    /// Sets the metadata.
    Put(Value),
    /// Changes the metadata by a JSON merge patch.
    Patch(Value),
    /// Sets the section.
    Configure(MmdsConfig),
}

impl MmdsAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::Get | Self::Put(_) | Self::Patch(_) => Phases::ANY,
            Self::Configure(_) => Phases::NOT_STARTED,
        }
    }
}

/// The metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct MmdsReply(pub Value);

/// How handlers reach the machine.
type Machine = State<Asker<MmdsAction, MmdsReply>>;

pub(super) fn routes() -> Router<Asker<MmdsAction, MmdsReply>> {
    Router::new()
        .route("/mmds", get(get_mmds).put(put_mmds).patch(patch_mmds))
        .route("/mmds/config", put(put_mmds_config))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_mmds, put_mmds, patch_mmds, put_mmds_config))]
pub(super) struct Description;

/// Returns the metadata; `{}` if it is not set. Refused after a start without `/mmds/config`.
#[utoipa::path(get, path = "/mmds", tag = "mmds",
    responses((status = 200, body = Value), (status = 400, body = FaultMessage)))]
pub(super) async fn get_mmds(State(machine): Machine) -> HandlerResult {
    reported!(machine, MmdsAction::Get, MmdsReply)
}

/// Sets the metadata: any JSON.
#[utoipa::path(put, path = "/mmds", tag = "mmds", request_body = Value,
    responses((status = 204), (status = 400, body = FaultMessage),
        (status = 413, body = FaultMessage, description = "More than --mmds-size-limit")))]
pub(super) async fn put_mmds(
    State(machine): Machine,
    Body(document): Body<Value>,
) -> HandlerResult {
    done(&machine, MmdsAction::Put(document)).await
}

/// Changes the metadata by a JSON merge patch (RFC 7396).
#[utoipa::path(patch, path = "/mmds", tag = "mmds", request_body = Value,
    responses((status = 204), (status = 400, body = FaultMessage),
        (status = 413, body = FaultMessage, description = "More than --mmds-size-limit")))]
pub(super) async fn patch_mmds(State(machine): Machine, Body(patch): Body<Value>) -> HandlerResult {
    done(&machine, MmdsAction::Patch(patch)).await
}

/// Configures the metadata service. Before the start only.
#[utoipa::path(put, path = "/mmds/config", tag = "mmds", request_body = MmdsConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_mmds_config(
    State(machine): Machine,
    Body(config): Body<MmdsConfig>,
) -> HandlerResult {
    let old = config.version == MmdsVersion::V1;
    deprecated_if(old, done(&machine, MmdsAction::Configure(config)).await)
}
