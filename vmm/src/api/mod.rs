// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HTTP API: Firecracker's paths, names and status codes on a Unix socket, with Ballast's
//! extensions.
//!
//! Runs on a separate thread with a single-threaded runtime, and reaches the machine only through
//! the [`mod@channel`]: a handler turns a request into an [`Action`] and a [`Reply`] into JSON,
//! nothing else. Wire types and routes live here; what a request does to the machine is in
//! [`control`](crate::control), and the rules about values are in [`config`](crate::config). May
//! use: `config`, `block_view`, and plain data of `devices::display`. Must not use: KVM, devices,
//! memory.
//!
//! - `refusal.rs`, `phase.rs`: why an action is refused; when which is legal
//! - `body.rs`, `error.rs`: bodies in, errors out
//! - `handler.rs`: what all handlers share; how they reach the machine
//! - `instance.rs`, `machine_config.rs`, `boot_source.rs`, `balloon.rs`, `memory.rs`,
//!   `evacuation.rs`, `compaction.rs`, `paging.rs`, `policy.rs`, `blocks.rs`, `cma.rs`, `gpu.rs`, `drives.rs`,
//!   `entropy.rs`, `network_interfaces.rs`, `serial.rs`, `vsock.rs`, `mmds.rs`, `logger.rs`, `metrics.rs`: the
//!   resources; each has its wire types, its actions, its routes and its description
//! - `resources.rs`: the list of resources: the actions and replies of all
//! - `channel.rs`: how actions reach the machine
//! - `absent.rs`: Firecracker's paths that Ballast does not offer
//! - `openapi.rs`: the description of the API, made from the handlers
//! - `stats.rs`: request counters
//! - `server/`: socket, connections, limits, deadlines, headers
//!
//! # Adding a resource
//!
//! 1. `config/NAME.rs`: the section and its rules; a field of [`VmConfig`](crate::config::VmConfig)
//!    and a line in `VmConfig::check`.
//! 2. `api/NAME.rs`: wire types, `NameAction` with its `legal_in`, `NameReply` if there is anything
//!    to report, handlers, `routes()` and `Description`; a `mod` line below and a line in
//!    `resources.rs`. `boot_source.rs` is the smallest example, `balloon.rs` a typical one.
//! 3. `control/NAME.rs`: `Controller::name_action`, which performs it; a line in
//!    `Controller::perform`.
//!
//! A path that was in `absent.rs` leaves it. The OpenAPI description is updated automatically.

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
pub mod mmds;
pub mod network_interfaces;
pub mod paging;
pub mod policy;
pub mod serial;
pub mod vsock;

mod absent;
mod body;
mod handler;
mod phase;
mod refusal;
mod resources;

use std::sync::Arc;

use axum::Router;
use http::{Method, Uri};

pub use channel::{ActionReceiver, ActionSender, channel};
use error::ApiError;
pub use instance::FIRECRACKER_API_VERSION;
pub use phase::{Phase, Phases};
pub use refusal::Refusal;
use resources::AskAny;
pub use resources::{Action, Reply};

/// All routes; their handlers ask `machine`.
pub fn router(machine: ActionSender) -> Router {
    let ask: AskAny = Arc::new(move |action| {
        let machine = machine.clone();
        Box::pin(async move { machine.ask(action).await })
    });
    resources::routes(&ask)
        .merge(absent::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(method, &uri)
}

#[cfg(test)]
mod tests;
