// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which version this is, and of whose API.

use crate::api::FIRECRACKER_API_VERSION;

/// Version of Ballast.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The first line is what clients of Firecracker look for.
pub(super) fn version_text() -> String {
    format!("Firecracker v{FIRECRACKER_API_VERSION}\nBallast v{VERSION} (speaks the API above)\n")
}
