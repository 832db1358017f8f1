// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Versions of Ballast and of the API.

use crate::api::FIRECRACKER_API_VERSION;

/// Version of Ballast.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Clients of Firecracker parse the first line.
pub(super) fn version_text() -> String {
    format!("Firecracker v{FIRECRACKER_API_VERSION}\nBallast v{VERSION} (speaks the API above)\n")
}
