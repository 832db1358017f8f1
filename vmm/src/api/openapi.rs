// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The OpenAPI description, generated from the handlers and their request and response types.
//!
//! `ballast openapi` prints it, `resources/openapi.json` holds it, and a test keeps the two equal.

use utoipa::OpenApi;

use super::resources;

#[derive(OpenApi)]
#[openapi(info(
    title = "Ballast",
    description = "Firecracker's API with Ballast's extensions. HTTP/1.1 on a Unix socket. Every \
                   error is status 400 with a `fault_message`.",
    license(name = "Apache-2.0 OR BSD-3-Clause"),
))]
struct Description;

/// The description, as JSON.
pub fn json() -> String {
    let mut description = Description::openapi();
    resources::describe(&mut description);
    // Plain data without maps of odd keys: serialization cannot fail.
    let text = description.to_pretty_json().unwrap_or_default();
    // utoipa writes `u-int32` where the registry of OpenAPI formats has `uint32`.
    let mut text = text.replace(r#""format": "u-int"#, r#""format": "uint"#);
    text.push('\n');
    text
}
