// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `gpu`: the display.

use std::path::PathBuf;

use devices::gpu::{MAX_EXTENT, MIN_EXTENT};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rules::{Check, Faults, socket_path};

/// The display device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuConfig {
    /// Width of each scanout, in pixels.
    pub width_px: u32,
    /// Height of each scanout, in pixels.
    pub height_px: u32,
    /// Number of scanouts, 1 to 16 (VIRTIO_GPU_MAX_SCANOUTS).
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 16)]
    pub scanouts: u32,
    /// Path of the Unix socket to create for viewing scanout 0 over VNC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vnc_socket: Option<PathBuf>,
}

const fn one() -> u32 {
    1
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_, Option<GpuConfig>>, faults: &mut Faults) {
    let Some(gpu) = check.section else { return };
    for (field, side) in [("gpu.width_px", gpu.width_px), ("gpu.height_px", gpu.height_px)] {
        if !(MIN_EXTENT..=MAX_EXTENT).contains(&side) {
            faults.add(field, format!("{side}: give {MIN_EXTENT} to {MAX_EXTENT}"));
        }
    }
    if gpu.scanouts == 0 || gpu.scanouts > 16 {
        faults.add("gpu.scanouts", format!("{}: give 1 to 16", gpu.scanouts));
    }
    if let Some(path) = &gpu.vnc_socket {
        socket_path("gpu.vnc_socket", path, faults);
    }
}
