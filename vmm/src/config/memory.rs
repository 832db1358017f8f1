// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `memory`: how guest memory is backed on the host (its size is `machine-config.mem_size_mib`).

use devices::gpu::DEFAULT_HOST_BYTES;
use mm::layout::LayoutError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine_config::{HugePages, MachineConfig};
use super::page_codec::PageCodec;
use super::policy::PolicyConfig;
use super::rules::{Check, Faults, HostLimits};

/// How guest memory is backed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Kind of host memory; transparent huge pages unless this or `machine-config.huge_pages`
    /// selects another kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<BackingKind>,
    /// Size of the CMA region that the guest reserves for devices, in MiB; 0 for none.
    pub cma_mib: u64,
    /// Limit on the monitor's memory for the display and its viewers (images, frames, buffers), in
    /// MiB. Guest memory does not count.
    pub host_budget_mib: u64,
    /// Limit on the mappings (VMAs) of guest memory, which the balloon and parking split; if
    /// absent, the host's limit per process (`vm.max_map_count`) less 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mappings: Option<u64>,
    /// Limit on threads beside the vCPUs: of devices, of io_uring, of viewers and of parking.
    pub host_threads: u16,
    /// Background compaction on the host side; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction: Option<CompactionConfig>,
    /// How memory is parked. If present, the machine is prepared for parking from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paging: Option<PagingConfig>,
    /// Automatic memory policy; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyConfig>,
}

impl MemoryConfig {
    /// The backing of guest memory: from this section, else from Firecracker's `huge_pages`, else
    /// transparent huge pages.
    pub(super) fn backing_beside(&self, huge_pages: HugePages) -> BackingKind {
        self.backing.unwrap_or(match huge_pages {
            HugePages::None | HugePages::Transparent => BackingKind::Thp,
            HugePages::Huge2M => BackingKind::Hugetlb2M,
        })
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            backing: None,
            cma_mib: 0,
            host_budget_mib: DEFAULT_HOST_BYTES >> 20,
            host_mappings: None,
            host_threads: DEFAULT_THREADS,
            compaction: None,
            paging: None,
            policy: None,
        }
    }
}

/// Threads unless told otherwise: enough for as many devices as a machine can have.
const DEFAULT_THREADS: u16 = 64;
/// Mappings that are left to the monitor itself: code, heap, stacks, images of the display.
const OWN_MAPPINGS: u64 = 4096;
/// Fewest mappings for giving memory back: two for each of a few runs.
const LEAST_MAPPINGS: u64 = 64;

/// Limits on mappings for each user of partial discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingShares {
    /// The balloon's, for blocks with holes.
    pub balloon: u64,
    /// Parking's, for runs of absent blocks.
    pub parking: u64,
}

impl MemoryConfig {
    /// Half of [`host_mappings`](Self::host_mappings), or of the limit of `host`, each: parking may
    /// be requested at any time.
    pub fn mapping_shares(&self, host: &HostLimits) -> MappingShares {
        let derived = host.mappings.saturating_sub(OWN_MAPPINGS).max(LEAST_MAPPINGS);
        let half = self.host_mappings.unwrap_or(derived) / 2;
        MappingShares { balloon: half, parking: half }
    }
}

/// How guest memory is parked (compressed into the monitor's pool).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PagingConfig {
    /// Limit on the memory for compressed pages, in MiB; half of guest memory if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_mib: Option<u64>,
    /// Compression: `lz4`, or `zstd` with a level as in `zstd:3`.
    #[schema(value_type = String)]
    pub codec: PageCodec,
    /// Codec with which a memory policy recompresses pages that have been parked for a minute; they
    /// are not recompressed if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub second_codec: Option<PageCodec>,
    /// Number of compression threads; one per host CPU if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u8>,
}

/// Background compaction of guest memory on the host side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CompactionConfig {
    /// A pass runs if the huge-page share of resident memory is below this, in percent.
    pub huge_percent: u8,
    /// Interval between checks, in seconds.
    pub interval_s: u16,
    /// Run only while guest memory is idle.
    pub only_idle: bool,
    /// Check immediately when host tasks stalled on memory for this long within two seconds, in
    /// milliseconds; 0 disables this.
    pub stall_ms: u16,
    /// Time limit of each pass, in milliseconds.
    pub budget_ms: u32,
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self { huge_percent: 90, interval_s: 30, only_idle: true, stall_ms: 150, budget_ms: 200 }
    }
}

/// The rules of this section; `layout` says why memory cannot be laid out.
pub(super) fn rules(
    check: &Check<'_, MemoryConfig>,
    machine: &MachineConfig,
    layout: Option<&LayoutError>,
    faults: &mut Faults,
) {
    let memory = check.section;
    let size_mib = machine.mem_size_mib;
    let backing = memory.backing_beside(machine.huge_pages);
    let block_mib = backing.block_mib();
    if !size_mib.is_multiple_of(block_mib) && machine.huge_pages == HugePages::None {
        let problem = format!("memory of {size_mib} MiB is not a multiple of {block_mib} MiB");
        faults.add("memory.backing", problem);
    }
    if let Some(error @ LayoutError::Cma { .. }) = layout {
        faults.add("memory.cma_mib", error.to_string());
    }
    match memory.host_budget_mib {
        0 => faults.add("memory.host_budget_mib", "0: give the size of the budget in MiB"),
        mib if mib > check.host.memory_mib.max(DEFAULT_HOST_BYTES >> 20) => {
            let problem =
                format!("{mib} MiB exceed the host's {} MiB of memory", check.host.memory_mib);
            faults.add("memory.host_budget_mib", problem);
        }
        _ => {}
    }
    match memory.host_mappings {
        Some(count) if count < LEAST_MAPPINGS => {
            let problem = format!("{count}: give at least {LEAST_MAPPINGS}, or omit it");
            faults.add("memory.host_mappings", problem);
        }
        Some(count) if count > check.host.mappings => {
            let allowed = check.host.mappings;
            let problem = format!(
                "{count} mappings exceed the host's limit of {allowed}: raise vm.max_map_count"
            );
            faults.add("memory.host_mappings", problem);
        }
        _ => {}
    }
    if let Some(compaction) = memory.compaction {
        if compaction.huge_percent > 100 {
            faults.add("memory.compaction.huge_percent", "above 100");
        }
        if compaction.interval_s == 0 || compaction.budget_ms == 0 {
            faults.add("memory.compaction", "interval_s and budget_ms must not be 0");
        }
    }
    if let Some(paging) = memory.paging {
        paging_rules(paging, backing, check.host, faults);
    }
    let contradicts = match (machine.huge_pages, memory.backing) {
        (HugePages::None, _) | (_, None) => false,
        (HugePages::Transparent, Some(backing)) => backing != BackingKind::Thp,
        (HugePages::Huge2M, Some(backing)) => backing != BackingKind::Hugetlb2M,
    };
    if contradicts {
        faults.add(
            "memory.backing",
            "conflicts with machine-config.huge_pages: give only one of them",
        );
    }
}

fn paging_rules(
    paging: PagingConfig,
    backing: BackingKind,
    host: &HostLimits,
    faults: &mut Faults,
) {
    if !matches!(backing, BackingKind::Thp | BackingKind::Small) {
        faults.add("memory.paging", "only memory of backing thp or small can be parked");
    }
    if paging.threads == Some(0) {
        faults.add("memory.paging.threads", "0: give at least 1, or omit it");
    }
    match paging.pool_mib {
        Some(0) => faults.add("memory.paging.pool_mib", "0: give the size of the pool in MiB"),
        Some(mib) if mib > host.memory_mib => {
            let problem = format!("{mib} MiB exceed the host's {} MiB of memory", host.memory_mib);
            faults.add("memory.paging.pool_mib", problem);
        }
        _ => {}
    }
}

/// Kinds of host memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum BackingKind {
    /// Anonymous, huge pages wherever the host has them.
    #[default]
    #[serde(rename = "thp")]
    Thp,
    /// Anonymous, pages of 4 KiB only.
    #[serde(rename = "small")]
    Small,
    /// A memfd: shared, so that other processes can map it.
    #[serde(rename = "memfd")]
    Memfd,
    /// Huge pages of 2 MiB that the host's administrator reserved.
    #[serde(rename = "hugetlb-2m")]
    Hugetlb2M,
    /// Huge pages of 1 GiB that the host's administrator reserved.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1G,
}

impl BackingKind {
    /// Memory comes in multiples of this, in MiB.
    pub const fn block_mib(self) -> u64 {
        match self {
            Self::Thp | Self::Small | Self::Memfd => 1,
            Self::Hugetlb2M => 2,
            Self::Hugetlb1G => 1024,
        }
    }
}
