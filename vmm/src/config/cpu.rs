// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cpu`: host CPU features that are hidden from the guest unless enabled.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Host CPU features that are hidden from the guest unless enabled here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpuConfig {
    /// VMX or SVM: the guest can run virtual machines (nested virtualization).
    pub nested_virtualization: bool,
    /// Performance counters, last-branch records and sampling.
    pub pmu: bool,
}
