// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths of Firecracker's API for what Ballast does not have. They say so, instead of pretending to
//! a client that its disk is there, and instead of telling it that it mistyped the path.

use axum::Router;
use axum::routing::any;

use super::error::ApiError;

/// Each path, and what it would be about.
pub(super) const ABSENT: &[(&str, &str)] = &[
    ("/pmem/{id}", "persistent memory devices"),
    ("/cpu-config", "CPU templates: the guest sees the host's CPU"),
    ("/hotplug/memory", "memory hotplug: use the balloon"),
    ("/snapshot/create", "snapshots"),
    ("/snapshot/load", "snapshots"),
];

pub(super) fn routes() -> Router {
    ABSENT.iter().fold(Router::new(), |router, &(path, what)| {
        router.route(path, any(move || async move { ApiError::NotOffered(what) }))
    })
}
