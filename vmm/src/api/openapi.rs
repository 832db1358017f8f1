// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The OpenAPI description, made from the handlers and the types that they take and give.
//!
//! `ballast openapi` prints it, `resources/openapi.json` holds it, and a test keeps the two equal.

use utoipa::OpenApi;

use super::{balloon, compaction, gpu, instance, machine, memory, observe};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ballast",
        description = "Firecracker's API, and what Ballast adds. HTTP/1.1 on a Unix socket. \
            Every error is status 400 with a `fault_message`.",
        license(name = "Apache-2.0 OR BSD-3-Clause"),
    ),
    paths(
        instance::get_instance,
        instance::get_version,
        instance::put_action,
        instance::patch_vm,
        instance::get_config,
        machine::get_machine,
        machine::put_machine,
        machine::patch_machine,
        machine::put_boot_source,
        balloon::get_balloon,
        balloon::put_balloon,
        balloon::patch_balloon,
        balloon::get_statistics,
        balloon::patch_statistics,
        balloon::start_hinting,
        balloon::get_hinting,
        balloon::stop_hinting,
        memory::get_memory,
        memory::put_memory,
        memory::put_evacuate,
        compaction::put_compact,
        compaction::get_compact,
        compaction::delete_compact,
        compaction::get_blocks,
        compaction::get_cma,
        gpu::get_gpu,
        gpu::put_gpu,
        gpu::get_scanout,
        gpu::patch_scanout,
        observe::put_logger,
        observe::get_metrics,
        observe::put_metrics,
    )
)]
struct Description;

/// The description, as JSON.
pub fn json() -> String {
    // Plain data without maps of odd keys: serialization cannot fail.
    let mut text = Description::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
