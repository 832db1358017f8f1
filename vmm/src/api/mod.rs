// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HTTP API: Firecracker's paths, names and status codes on a Unix socket, and a few of our own.
//!
//! Runs on a thread of its own, on a single-threaded runtime, and reaches the machine only through
//! the [`channel`]: handlers turn a request into an [`Action`] and a [`Reply`] into
//! JSON, nothing else. May use: `config`, `block_view`, and plain data of `devices::display`. Must not
//! use: KVM, devices, memory.
//!
//! - `action.rs`: every action and reply, and when which is legal
//! - `channel.rs`: how they travel
//! - `server.rs`: socket, connections, limits, headers
//! - `body.rs`, `error.rs`: bodies in, errors out
//! - `instance.rs`, `machine.rs`, `balloon.rs`, `memory.rs`, `compaction.rs`, `gpu.rs`, `observe.rs`: the
//!   routes, by resource
//! - `absent.rs`: paths of Firecracker's that are not offered, and say so
//! - `openapi.rs`: the description of it all, made from the handlers
//! - `stats.rs`: requests counted

pub mod action;
pub mod channel;
pub mod error;
pub mod openapi;
pub mod server;
pub mod stats;

mod absent;
mod balloon;
mod body;
pub mod compaction;
mod gpu;
mod instance;
mod machine;
mod memory;
mod observe;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri};

pub use action::{Action, Phase, Refusal, Reply};
pub use channel::{Door, Requests, channel};
use error::ApiError;

/// Version of Firecracker's API that this one follows, as its clients ask for it.
pub const FIRECRACKER_API_VERSION: &str = "1.17.0";

/// All routes.
pub fn router(door: Door) -> Router {
    Router::new()
        .merge(instance::routes())
        .merge(machine::routes())
        .merge(balloon::routes())
        .merge(memory::routes())
        .merge(compaction::routes())
        .merge(gpu::routes())
        .merge(observe::routes())
        .merge(absent::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .with_state(door)
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(method, &uri)
}

/// What a handler returns.
type Answer = Result<Response, ApiError>;

/// Asks for something that has no reply but success: 204.
async fn done(door: &Door, action: Action) -> Answer {
    match door.ask(action).await? {
        Reply::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(ApiError::WrongReply),
    }
}

/// Asks for something, and picks the reply that belongs to it: 200 with JSON.
async fn tell<T: serde::Serialize>(
    door: &Door,
    action: Action,
    pick: impl FnOnce(Reply) -> Option<T>,
) -> Answer {
    match pick(door.ask(action).await?) {
        Some(body) => Ok(Json(body).into_response()),
        None => Err(ApiError::WrongReply),
    }
}

/// `told!(door, Action, Reply::Variant)`.
macro_rules! told {
    ($door:expr, $action:expr, $reply:path) => {
        $crate::api::tell(&$door, $action, |reply| match reply {
            $reply(body) => Some(body),
            _ => None,
        })
        .await
    };
}
use told;

/// The state that every handler takes.
type At = State<Door>;

#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;
