// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths of Firecracker's API for features that Ballast lacks. They return a specific error instead
//! of a false success or an unknown-path error.

use axum::Router;
use axum::routing::any;

use super::error::ApiError;

/// Each path, and the missing feature.
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
