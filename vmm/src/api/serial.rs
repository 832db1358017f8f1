// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/serial`: where the serial console's output goes.

use std::path::PathBuf;

use axum::Router;
use axum::extract::State;
use axum::routing::put;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done};
use super::phase::Phases;
use crate::config::RateLimiterConfig;

/// Actions on the serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialAction {
    /// Sets where output goes.
    Set(SerialOutput),
}

impl SerialAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::NOT_STARTED
    }
}

/// Where the serial console's output goes (`PUT /serial`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SerialOutput {
    /// A file or FIFO; standard output if left out.
    #[schema(value_type = Option<String>)]
    pub serial_out_path: Option<PathBuf>,
    /// Accepted without effect: the output file has a fixed size limit.
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// How handlers reach the machine.
type Machine = State<Asker<SerialAction>>;

pub(super) fn routes() -> Router<Asker<SerialAction>> {
    Router::new().route("/serial", put(put_serial))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(put_serial))]
pub(super) struct Description;

/// Sets the output of the serial console. Before the start only.
#[utoipa::path(put, path = "/serial", tag = "machine", request_body = SerialOutput,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_serial(
    State(machine): Machine,
    Body(body): Body<SerialOutput>,
) -> HandlerResult {
    done(&machine, SerialAction::Set(body)).await
}
