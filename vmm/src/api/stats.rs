// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests counted, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;
use mm::budget::Budget;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Connections served at a time.
pub const MAX_CONNECTIONS: usize = 10;

/// Requests that have a field of their own in Firecracker's metrics: group, method, first segment
/// of the path, and the field's name without its ending.
const NAMED: [(&str, Method, &str, &str); 24] = [
    ("get_api_requests", Method::GET, "", "instance_info"),
    ("get_api_requests", Method::GET, "machine-config", "machine_cfg"),
    ("get_api_requests", Method::GET, "mmds", "mmds"),
    ("get_api_requests", Method::GET, "version", "vmm_version"),
    ("get_api_requests", Method::GET, "hotplug", "hotplug_memory"),
    ("put_api_requests", Method::PUT, "actions", "actions"),
    ("put_api_requests", Method::PUT, "boot-source", "boot_source"),
    ("put_api_requests", Method::PUT, "drives", "drive"),
    ("put_api_requests", Method::PUT, "logger", "logger"),
    ("put_api_requests", Method::PUT, "machine-config", "machine_cfg"),
    ("put_api_requests", Method::PUT, "cpu-config", "cpu_cfg"),
    ("put_api_requests", Method::PUT, "metrics", "metrics"),
    ("put_api_requests", Method::PUT, "network-interfaces", "network"),
    ("put_api_requests", Method::PUT, "mmds", "mmds"),
    ("put_api_requests", Method::PUT, "vsock", "vsock"),
    ("put_api_requests", Method::PUT, "pmem", "pmem"),
    ("put_api_requests", Method::PUT, "serial", "serial"),
    ("put_api_requests", Method::PUT, "hotplug", "hotplug_memory"),
    ("patch_api_requests", Method::PATCH, "drives", "drive"),
    ("patch_api_requests", Method::PATCH, "network-interfaces", "network"),
    ("patch_api_requests", Method::PATCH, "machine-config", "machine_cfg"),
    ("patch_api_requests", Method::PATCH, "mmds", "mmds"),
    ("patch_api_requests", Method::PATCH, "hotplug", "hotplug_memory"),
    ("patch_api_requests", Method::PATCH, "pmem", "pmem"),
];

/// Requests and failures of one kind.
#[derive(Debug, Default, Serialize)]
pub struct RequestCounts {
    /// Requests that came in.
    pub requests: AtomicU64,
    /// Of these, answered with an error.
    pub fails: AtomicU64,
}

impl RequestCounts {
    fn count(&self, succeeded: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.fails.fetch_add((!succeeded).into(), Ordering::Relaxed);
    }
}

/// Places for connections.
#[derive(Debug, Clone)]
pub struct ConnectionBudget(pub Arc<Budget>);

impl Default for ConnectionBudget {
    fn default() -> Self {
        Self(Budget::count("api-connections", MAX_CONNECTIONS as u64))
    }
}

/// Counters of the server; relaxed, as no ordering depends on them.
#[derive(Debug, Default, Serialize)]
pub struct ApiStats {
    /// GET requests.
    pub get: RequestCounts,
    /// PUT requests.
    pub put: RequestCounts,
    /// PATCH requests.
    pub patch: RequestCounts,
    /// Requests of any other method.
    pub other: RequestCounts,
    /// Connections rejected above the limit.
    pub refused_connections: AtomicU64,
    /// Requests that used something deprecated.
    pub deprecated: AtomicU64,
    /// Connections, of which there may be so many at a time.
    #[serde(skip)]
    pub connections: ConnectionBudget,
    #[serde(skip)]
    named: [RequestCounts; NAMED.len()],
}

impl ApiStats {
    /// Counts one request.
    pub fn count(&self, method: &Method, path: &str, succeeded: bool) {
        let counts = match *method {
            Method::GET => &self.get,
            Method::PUT => &self.put,
            Method::PATCH => &self.patch,
            _ => &self.other,
        };
        counts.count(succeeded);
        let first = path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
        let named = NAMED.iter().zip(&self.named);
        if let Some((_, counts)) =
            named.into_iter().find(|((_, m, path, _), _)| m == method && *path == first)
        {
            counts.count(succeeded);
        }
    }

    /// Firecracker's groups of these counters.
    pub fn groups(&self) -> Map<String, Value> {
        let mut groups = Map::new();
        for ((group, _, _, name), counts) in NAMED.iter().zip(&self.named) {
            let fields = groups.entry(*group).or_insert_with(|| json!({}));
            fields[format!("{name}_count")] = json!(counts.requests);
            if *group != "get_api_requests" {
                fields[format!("{name}_fails")] = json!(counts.fails);
            }
        }
        let deprecated = json!({"deprecated_http_api_calls": self.deprecated});
        groups.insert("deprecated_api".into(), deprecated);
        groups
    }
}
