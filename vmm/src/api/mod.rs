// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HTTP API: Firecracker's paths, names and status codes on a Unix socket, and a few of our own.
//!
//! Runs on a thread of its own, on a single-threaded runtime, and reaches the machine only through
//! the [`mod@channel`]: a handler turns a request into an [`Action`] and a [`Reply`] into JSON, nothing
//! else. Wire types and routes live here; what a request does to the machine is in
//! [`control`](crate::control), and the rules about values are in [`config`](crate::config). May use:
//! `config`, `block_view`, and plain data of `devices::display`. Must not use: KVM, devices, memory.
//!
//! - `resources.rs`: the list of resources
//! - `action.rs`: phases, actions and refusals
//! - `channel.rs`: how actions reach the machine
//! - `server/`: socket, connections, limits, deadlines, headers
//! - `body.rs`, `error.rs`: bodies in, errors out
//! - `instance.rs`, `machine_config.rs`, `boot_source.rs`, `balloon.rs`, `memory.rs`,
//!   `evacuation.rs`, `compaction.rs`, `paging.rs`, `blocks.rs`, `cma.rs`, `gpu.rs`, `drives.rs`,
//!   `entropy.rs`, `network_interfaces.rs`, `serial.rs`, `vsock.rs`, `logger.rs`, `metrics.rs`: the
//!   resources; each has its wire types, its actions, its routes and its description
//! - `absent.rs`: Firecracker's paths that Ballast does not offer
//! - `openapi.rs`: the description of the API, made from the handlers
//! - `stats.rs`: request counters
//!
//! # Adding a resource
//!
//! 1. `config/NAME.rs`: the section and its rules; a field of [`VmConfig`](crate::config::VmConfig)
//!    and a line in `config::SECTIONS`.
//! 2. `api/NAME.rs`: wire types, `NameAction` with its `legal_in`, `NameReply` if there is anything
//!    to report, handlers, `routes()` and `Description`; a `mod` line below and a line in
//!    `resources.rs`. `boot_source.rs` is the smallest example, `balloon.rs` a typical one.
//! 3. `control/NAME.rs`: `Controller::name_action`, which does it; a line in
//!    `Controller::perform`.
//!
//! A path that was in `absent.rs` leaves it. The OpenAPI description follows by itself.

pub mod action;
pub mod channel;
pub mod error;
pub mod openapi;
pub mod server;
pub mod stats;

pub mod balloon;
pub mod blocks;
pub mod boot_source;
pub mod cma;
pub mod compaction;
pub mod drives;
pub mod entropy;
pub mod evacuation;
pub mod gpu;
pub mod instance;
pub mod logger;
pub mod machine_config;
pub mod memory;
pub mod metrics;
pub mod network_interfaces;
pub mod paging;
pub mod serial;
pub mod vsock;

mod absent;
mod body;
mod resources;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, Uri};

pub use action::{Action, Phase, Refusal, Reply};
pub use channel::{ActionReceiver, ActionSender, channel};
use error::ApiError;

/// Version of Firecracker's API that this one follows, as its clients ask for it.
pub const FIRECRACKER_API_VERSION: &str = "1.17.0";

/// All routes.
pub fn router(machine: ActionSender) -> Router {
    resources::routes()
        .merge(absent::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .with_state(machine)
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(method, &uri)
}

/// What a handler returns.
type HandlerResult = Result<Response, ApiError>;

/// Asks for something that has nothing to report but success: 204.
async fn done(machine: &ActionSender, action: impl Into<Action>) -> HandlerResult {
    match machine.ask(action.into()).await? {
        Reply::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(ApiError::WrongReply),
    }
}

/// Asks for something, and picks the reply that belongs to it: 200 with JSON.
async fn report<R: TryFrom<Reply>, T: serde::Serialize>(
    machine: &ActionSender,
    action: impl Into<Action>,
    pick: impl FnOnce(R) -> Option<T>,
) -> HandlerResult {
    match R::try_from(machine.ask(action.into()).await?).ok().and_then(pick) {
        Some(body) => Ok(Json(body).into_response()),
        None => Err(ApiError::WrongReply),
    }
}

/// `reported!(machine, action, NameReply::Variant)`.
macro_rules! reported {
    ($machine:expr, $action:expr, $reply:path) => {
        $crate::api::report(&$machine, $action, |reply| match reply {
            $reply(body) => Some(body),
            #[allow(unreachable_patterns, reason = "not where a resource has one reply only")]
            _ => None,
        })
        .await
    };
}
use reported;

/// Marks an answer as one to a request that uses something deprecated, as Firecracker does.
fn deprecated(mut response: Response) -> Response {
    response.headers_mut().insert("Deprecation", HeaderValue::from_static("true"));
    response
}

/// The state that every handler takes: the way to the machine.
type Machine = State<ActionSender>;

#[cfg(test)]
mod tests;
