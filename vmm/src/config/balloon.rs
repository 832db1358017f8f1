// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `balloon`: the device through which a guest returns memory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rules::{Check, Faults};

/// The balloon's configuration before the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Target size, in MiB.
    pub amount_mib: u32,
    /// Whether the guest may deflate the balloon instead of letting the OOM killer act.
    pub deflate_on_oom: bool,
    /// Polling interval for statistics, in seconds; 0 disables them, and they cannot be enabled
    /// later.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest may be asked for its free pages (`/balloon/hinting`).
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest reports free pages by itself.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Whether to offer the features for whole blocks and for evacuation (`/memory/evacuate`) to
    /// the guest. Omitted if true, as Firecracker has no such field.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub blocks: bool,
}

fn yes() -> bool {
    true
}

/// The rules of this section, for a guest of `size_mib`.
pub(super) fn rules(check: &Check<'_, Option<BalloonConfig>>, size_mib: u64, faults: &mut Faults) {
    let Some(balloon) = check.section else { return };
    if u64::from(balloon.amount_mib) > size_mib {
        let problem = format!("{} MiB: the guest has {size_mib} MiB", balloon.amount_mib);
        faults.add("balloon.amount_mib", problem);
    }
}

/// A new target (`PATCH /balloon`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// Target size, in MiB.
    pub amount_mib: u32,
}

/// A new polling interval for statistics (`PATCH /balloon/statistics`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Polling interval, in seconds. It cannot change from or to 0: statistics are enabled or
    /// disabled before boot.
    pub stats_polling_interval_s: u16,
}
