// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `machine-config`: vCPUs and the size of memory.

use mm::layout::LayoutError;
use mm::units::BLOCK_SIZE;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::rules::{Check, Faults};

/// Most vCPUs that a machine can have: xAPIC identifiers end at 254, 255 is the broadcast.
pub const MAX_VCPUS: u8 = 254;

/// vCPUs and the size of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    #[schema(minimum = 1, maximum = 254)]
    pub vcpu_count: u8,
    /// Size of guest memory, in MiB. An odd number is rounded up by one, as RAM consists of whole 2
    /// MiB blocks.
    #[schema(minimum = 1)]
    pub mem_size_mib: u64,
    /// Whether each pair of vCPUs forms one core.
    #[serde(default)]
    pub smt: bool,
    /// One of Firecracker's deprecated static CPU templates: accepted without effect.
    #[serde(default)]
    #[schema(value_type = CpuTemplate)]
    pub cpu_template: NamedTemplate,
    /// Prepares for differential snapshots in Firecracker. Accepted without effect, as clients
    /// always set it; Ballast rejects requests for snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Page size of guest memory, in Firecracker's terms; `memory.backing` has more choices.
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
            cpu_template: NamedTemplate::default(),
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// Size of guest memory, in bytes. RAM consists of whole 2 MiB blocks: an odd number of MiB is
    /// rounded up. Saturates; the rules reject such sizes.
    pub fn memory_bytes(&self) -> u64 {
        self.mem_size_mib
            .saturating_mul(1 << 20)
            .checked_next_multiple_of(BLOCK_SIZE)
            .unwrap_or(u64::MAX)
    }

    /// Applies the fields that are present in `update`.
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
        self.cpu_template = cpu_template.map_or(self.cpu_template, NamedTemplate::from);
        self.track_dirty_pages = track_dirty_pages.unwrap_or(self.track_dirty_pages);
        self.huge_pages = huge_pages.unwrap_or(self.huge_pages);
    }
}

/// The rules of this section; `layout` says why memory cannot be laid out.
pub(super) fn rules(
    check: &Check<'_, MachineConfig>,
    layout: Option<&LayoutError>,
    faults: &mut Faults,
) {
    let MachineConfig { vcpu_count, mem_size_mib, smt, huge_pages, .. } = *check.section;
    if vcpu_count == 0 || vcpu_count > MAX_VCPUS {
        let problem = format!("{vcpu_count} vCPUs: give 1 to {MAX_VCPUS}");
        faults.add("machine-config.vcpu_count", problem);
    }
    if smt && vcpu_count > 1 && vcpu_count % 2 != 0 {
        let problem = format!("{vcpu_count} vCPUs: with smt, give 1 or an even number of vCPUs");
        faults.add("machine-config.vcpu_count", problem);
    }
    if mem_size_mib == 0 {
        faults.add("machine-config.mem_size_mib", "0 MiB: a guest needs memory");
    } else if mem_size_mib > check.host.memory_mib {
        let problem = format!("{mem_size_mib} MiB: this host has {} MiB", check.host.memory_mib);
        faults.add("machine-config.mem_size_mib", problem);
    } else if let Some(error @ LayoutError::TooLarge(_)) = layout {
        faults.add("machine-config.mem_size_mib", error.to_string());
    }
    if huge_pages != HugePages::None && mem_size_mib % 2 != 0 {
        let problem = format!("{mem_size_mib} MiB: huge pages need a multiple of 2 MiB");
        faults.add("machine-config.mem_size_mib", problem);
    }
}

impl MachineUpdate {
    /// Refuses an update that names no field, as Firecracker does.
    ///
    /// # Errors
    ///
    /// There is nothing to change.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut faults = Faults::default();
        if *self == Self::default() {
            faults.add("machine-config", "empty update: give at least one field");
        }
        faults.into_result()
    }
}

/// Fields of [`MachineConfig`] to change (`PATCH /machine-config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
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

/// A template, and whether a request named one: naming it is deprecated, even as `"None"`. For
/// comparisons only the template counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamedTemplate {
    template: CpuTemplate,
    named: bool,
}

impl NamedTemplate {
    /// Whether the request named a template.
    pub fn is_named(self) -> bool {
        self.named
    }
}

impl From<CpuTemplate> for NamedTemplate {
    fn from(template: CpuTemplate) -> Self {
        Self { template, named: true }
    }
}

impl PartialEq for NamedTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.template == other.template
    }
}

impl Eq for NamedTemplate {}

impl Serialize for NamedTemplate {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.template.serialize(out)
    }
}

impl<'de> Deserialize<'de> for NamedTemplate {
    /// `null` is as if the field was left out.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::<CpuTemplate>::deserialize(from)?.map(Self::from).unwrap_or_default())
    }
}

/// Firecracker's static CPU templates, deprecated there. Accepted without effect: the guest sees
/// the host's CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuTemplate {
    /// No template.
    #[default]
    None,
    /// Intel, like AWS C3.
    C3,
    /// Intel, like AWS T2.
    T2,
    /// Intel, like AWS T2 with the features that snapshots need.
    T2S,
    /// Intel Cascade Lake, like AWS T2.
    T2CL,
    /// AMD, like AWS T2.
    T2A,
    /// Arm.
    V1N1,
}

/// Page size of guest memory, in Firecracker's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// Default: `memory.backing` decides (transparent huge pages by default).
    #[default]
    None,
    /// Transparent huge pages.
    Transparent,
    /// Huge pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    Huge2M,
}
