// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `gpu`: the display.

use std::path::PathBuf;

use devices::gpu::{MAX_EXTENT, MIN_EXTENT};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Faults;

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
    /// Path of a Unix socket to be made, where scanout 0 can be watched by VNC; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vnc_socket: Option<PathBuf>,
}

const fn one() -> u32 {
    1
}

impl GpuConfig {
    /// Notes what is wrong with this section.
    pub fn validate(&self, faults: &mut Faults) {
        for (field, side) in [("gpu.width_px", self.width_px), ("gpu.height_px", self.height_px)] {
            if !(MIN_EXTENT..=MAX_EXTENT).contains(&side) {
                faults.add(field, format!("{side}: give {MIN_EXTENT} to {MAX_EXTENT}"));
            }
        }
        if self.scanouts == 0 || self.scanouts > 16 {
            faults.add("gpu.scanouts", format!("{}: give 1 to 16", self.scanouts));
        }
    }
}
