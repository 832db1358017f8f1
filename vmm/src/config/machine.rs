// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `machine-config`: vCPUs and the size of memory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Faults, HostLimits};

/// Most vCPUs that a machine can have: xAPIC identifiers end at 254, 255 is the broadcast.
pub const MAX_VCPUS: u8 = 254;

/// vCPUs and the size of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    #[schema(minimum = 1, maximum = 254)]
    pub vcpu_count: u8,
    /// Size of guest memory, in MiB.
    #[schema(minimum = 1)]
    pub mem_size_mib: u64,
    /// Whether two vCPUs each form one core.
    #[serde(default)]
    pub smt: bool,
    /// Firecracker's static CPU templates: the guest sees the host's CPU here.
    #[serde(default)]
    pub cpu_template: CpuTemplate,
    /// Dirty page tracking for snapshots, which Ballast does not offer: only `false` is taken.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What memory is made of, in Firecracker's words; `memory.backing` says more.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    /// Firecracker's: one vCPU, 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: CpuTemplate::None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// Size of guest memory, in bytes. Saturates; [`validate`](Self::validate) refuses what does.
    pub fn memory_bytes(&self) -> u64 {
        self.mem_size_mib.saturating_mul(1 << 20)
    }

    /// Takes over the fields that `update` names.
    pub fn apply(&mut self, update: MachineUpdate) {
        let MachineUpdate {
            vcpu_count,
            mem_size_mib,
            smt,
            cpu_template,
            track_dirty_pages,
            huge_pages,
        } = update;
        self.vcpu_count = vcpu_count.unwrap_or(self.vcpu_count);
        self.mem_size_mib = mem_size_mib.unwrap_or(self.mem_size_mib);
        self.smt = smt.unwrap_or(self.smt);
        self.cpu_template = cpu_template.unwrap_or(self.cpu_template);
        self.track_dirty_pages = track_dirty_pages.unwrap_or(self.track_dirty_pages);
        self.huge_pages = huge_pages.unwrap_or(self.huge_pages);
    }

    /// Notes what is wrong with this section.
    pub fn validate(&self, host: &HostLimits, faults: &mut Faults) {
        let Self { vcpu_count, mem_size_mib, smt, cpu_template: _, track_dirty_pages, huge_pages } =
            *self;
        if vcpu_count == 0 || vcpu_count > MAX_VCPUS {
            let problem = format!("{vcpu_count} vCPUs: give 1 to {MAX_VCPUS}");
            faults.add("machine-config.vcpu_count", problem);
        }
        if smt && vcpu_count > 1 && vcpu_count % 2 != 0 {
            let problem =
                format!("{vcpu_count} vCPUs: with smt, give 1 or an even number of vCPUs");
            faults.add("machine-config.vcpu_count", problem);
        }
        if mem_size_mib == 0 {
            faults.add("machine-config.mem_size_mib", "0 MiB: a guest needs memory");
        } else if mem_size_mib > host.memory_mib {
            let problem = format!("{mem_size_mib} MiB: this host has {} MiB", host.memory_mib);
            faults.add("machine-config.mem_size_mib", problem);
        }
        if huge_pages != HugePages::None && mem_size_mib % 2 != 0 {
            let problem = format!("{mem_size_mib} MiB: huge pages need a multiple of 2 MiB");
            faults.add("machine-config.mem_size_mib", problem);
        }
        if track_dirty_pages {
            let problem = "true: Ballast takes no snapshots and tracks no dirty pages";
            faults.add("machine-config.track_dirty_pages", problem);
        }
    }
}

/// Fields of [`MachineConfig`] to change (`PATCH /machine-config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MachineUpdate {
    /// See [`MachineConfig::vcpu_count`].
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfig::mem_size_mib`].
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfig::smt`].
    pub smt: Option<bool>,
    /// See [`MachineConfig::cpu_template`].
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineConfig::track_dirty_pages`].
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfig::huge_pages`].
    pub huge_pages: Option<HugePages>,
}

/// Firecracker's static CPU templates, of which Ballast has only the one that changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuTemplate {
    /// The guest sees the host's CPU.
    #[default]
    None,
}

/// What memory is made of, in Firecracker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// No wish: `memory.backing` decides, which is transparent huge pages unless it is given.
    #[default]
    None,
    /// Transparent huge pages.
    Transparent,
    /// Huge pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    Huge2M,
}
