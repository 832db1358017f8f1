// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Targets of requests, as Firecracker reads them: empty segments are ignored, a query, a
//! fragment and percent-encoding are parts of the path and so make it an unknown one, and for some
//! resources further segments are ignored.

use std::borrow::Cow;

use http::uri::InvalidUri;
use http::{Method, Uri};

/// Firecracker resources with a path of one segment: further segments are ignored. One client
/// appends a device's name to `/vsock`.
const ONE_SEGMENT: [&str; 10] = [
    "actions",
    "boot-source",
    "cpu-config",
    "entropy",
    "logger",
    "machine-config",
    "metrics",
    "serial",
    "version",
    "vsock",
];

/// The target `text` of a request. A fragment, which `Uri` would drop, becomes a part of the path.
pub(super) fn target(text: &str) -> Result<Uri, InvalidUri> {
    if text.contains('#') { text.replace('#', "%23").parse() } else { text.parse() }
}

/// The path that the routes know `uri` by; `None` where Firecracker knows none such.
pub(super) fn canonical<'a>(method: &Method, uri: &'a Uri) -> Option<Cow<'a, str>> {
    let path = uri.path();
    if uri.query().is_some() || path.contains('%') {
        return None;
    }
    let first = path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
    let ignores_more =
        ONE_SEGMENT.contains(&first) || (first == "balloon" && method == Method::PUT);
    let kept = if ignores_more { 1 } else { usize::MAX };
    let segments: Vec<&str> =
        path.split('/').filter(|segment| !segment.is_empty()).take(kept).collect();
    let canonical = format!("/{}", segments.join("/"));
    Some(if canonical == path { Cow::Borrowed(path) } else { Cow::Owned(canonical) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_firecracker_reads_them() {
        for (method, target, expected) in [
            ("GET", "/", Some("/")),
            ("GET", "//machine-config", Some("/machine-config")),
            ("GET", "/machine-config/", Some("/machine-config")),
            ("GET", "/machine-config/x/y", Some("/machine-config")),
            ("PUT", "/vsock/vsock0", Some("/vsock")),
            ("PUT", "/balloon/x", Some("/balloon")),
            ("GET", "/balloon/x", Some("/balloon/x")),
            ("GET", "/balloon//statistics/", Some("/balloon/statistics")),
            ("GET", "/memory/x", Some("/memory/x")),
            ("GET", "http://localhost/version", Some("/version")),
            ("PUT", "/drives/größe", Some("/drives/größe")),
            ("GET", "/machine-config?x=1", None),
            ("GET", "/version#x", None),
            ("GET", "/version/x#y", None),
            ("GET", "/%76ersion", None),
        ] {
            let uri = super::target(target).unwrap();
            let found = canonical(&method.parse().unwrap(), &uri);
            assert_eq!(found.as_deref(), expected, "{method} {target}");
        }
    }
}
