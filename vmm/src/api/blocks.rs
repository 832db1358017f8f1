// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/blocks`: the block map. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use super::error::{ApiError, FaultMessage};
use super::handler::{Asker, HandlerResult};
use super::phase::Phases;
use crate::block_view::BlockRuns;

/// The media type of the compact form.
const BYTES: &str = "application/octet-stream";

/// Actions on the block map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlocksAction {
    /// The map: [`BlocksReply`].
    Get,
}

impl BlocksAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::STARTED
    }
}

/// Reply to [`BlocksAction::Get`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlocksReply(pub BlockRuns);

/// How handlers reach the machine.
type Machine = State<Asker<BlocksAction, BlocksReply>>;

pub(super) fn routes() -> Router<Asker<BlocksAction, BlocksReply>> {
    Router::new().route("/memory/blocks", get(get_blocks))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_blocks))]
pub(super) struct Description;

/// The state of every block of guest memory, as JSON, or in a compact form with `Accept:
/// application/octet-stream`.
#[utoipa::path(get, path = "/memory/blocks", tag = "memory",
    responses((status = 200, body = BlockRuns), (status = 400, body = FaultMessage)))]
pub(super) async fn get_blocks(State(machine): Machine, headers: HeaderMap) -> HandlerResult {
    let Some(BlocksReply(runs)) = machine.ask(BlocksAction::Get).await? else {
        return Err(ApiError::WrongReply);
    };
    let wants_bytes = headers.get(ACCEPT).is_some_and(|accept| accept == BYTES);
    Ok(if wants_bytes {
        ([(CONTENT_TYPE, BYTES)], runs.to_bytes()).into_response()
    } else {
        axum::Json(runs).into_response()
    })
}
