// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests counted, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;
use serde::Serialize;

/// Requests and failures of one method.
#[derive(Debug, Default, Serialize)]
pub struct MethodCounts {
    /// Requests that came in.
    pub requests: AtomicU64,
    /// Of these, answered with an error.
    pub fails: AtomicU64,
}

/// What the server counts; relaxed, since no count orders anything.
#[derive(Debug, Default, Serialize)]
pub struct ApiStats {
    /// GET requests.
    pub get: MethodCounts,
    /// PUT requests.
    pub put: MethodCounts,
    /// PATCH requests.
    pub patch: MethodCounts,
    /// Requests of any other method.
    pub other: MethodCounts,
    /// Connections turned away because there were too many.
    pub refused_connections: AtomicU64,
}

impl ApiStats {
    /// Counts one request.
    pub fn count(&self, method: &Method, _path: &str, succeeded: bool) {
        let counts = match *method {
            Method::GET => &self.get,
            Method::PUT => &self.put,
            Method::PATCH => &self.patch,
            _ => &self.other,
        };
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.fails.fetch_add((!succeeded).into(), Ordering::Relaxed);
    }
}
