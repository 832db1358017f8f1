// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration of a machine: one value, produced by the command line, a configuration file
//! and the API alike, from which the builder starts.
//!
//! The JSON form is Firecracker's (`--config-file`, `GET /vm/config`), with Ballast's additional
//! sections. Unknown fields are rejected, every number has its unit in its name, and
//! [`VmConfig::validate`] reports all faults together. Nothing here touches KVM.
//!
//! One set of rules about values: each section's file has a function `rules`, called by
//! `VmConfig::check`. A PUT checks the resulting configuration against all of them, and the start
//! checks again, so the start accepts what a PUT accepts.
//!
//! May use: constants and plain data of `devices` and `mm` (extents, layouts). Must not use: `api`,
//! `control`, `compactor`, the machine.
//!
//! - `rules.rs`: inputs of rules, and the faults that they find
//! - `machine_config.rs`: vCPUs and the size of memory (`machine-config`)
//! - `memory.rs`: how that memory is backed on the host (`memory`, Ballast extension)
//! - `threads.rs`: threads that devices and clients may have (`memory.host_threads`)
//! - `page_codec.rs`: how parked pages are compressed
//! - `policy.rs`: the memory policy (`memory.policy`)
//! - `boot_source.rs`: kernel, initrd and command line (`boot-source`), and their files
//! - `balloon.rs`: the balloon (`balloon`)
//! - `cpu.rs`: CPU features that are off unless asked for (`cpu`, Ballast extension)
//! - `console.rs`: the serial console (`console`, Ballast extension)
//! - `drives.rs`: disks (`drives`)
//! - `entropy.rs`: the source of random numbers (`entropy`)
//! - `network_interfaces.rs`: network interfaces (`network-interfaces`)
//! - `vsock.rs`: streams between guest and host (`vsock`)
//! - `mmds.rs`: where the guest reaches the metadata service (`mmds-config`)
//! - `rate_limiter.rs`: limits that devices share
//! - `gpu.rs`: the display (`gpu`, Ballast extension)
//! - `logger.rs`, `metrics.rs`: the monitor's log and counters (`logger`, `metrics`)
//! - `objects.rs`: JSON in which an array is never accepted as an object
//! - `absent.rs`: Firecracker's sections that name devices Ballast does not have

mod absent;
mod balloon;
mod boot_source;
mod console;
mod cpu;
pub mod drives;
mod entropy;
mod gpu;
mod logger;
mod machine_config;
mod memory;
mod metrics;
mod mmds;
pub mod network_interfaces;
mod objects;
mod page_codec;
mod policy;
mod rate_limiter;
mod rules;
mod threads;
mod vsock;

use std::path::Path;

use mm::layout::{LayoutError, MemoryLayout};
use mm::units::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::host::files::read_text;

/// Largest configuration file, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;

pub use absent::Absent;
pub use balloon::{BalloonConfig, BalloonStatsUpdate, BalloonUpdate};
pub use boot_source::{BootSource, CMDLINE_MAX, DEFAULT_BOOT_ARGS, without_acpi};
pub use console::ConsoleConfig;
pub use cpu::CpuConfig;
pub use drives::{CacheType, DriveConfig, DriveUpdate, ImageFormat, IoEngine};
pub use entropy::EntropyConfig;
pub use gpu::GpuConfig;
pub use logger::{LogLevel, LoggerConfig};
pub use machine_config::{
    CpuTemplate, HugePages, MAX_VCPUS, MachineConfig, MachineUpdate, NamedTemplate,
};
pub use memory::{BackingKind, CompactionConfig, MemoryConfig, PagingConfig};
pub use metrics::MetricsConfig;
pub use mmds::{MmdsConfig, MmdsVersion};
pub use network_interfaces::{
    MacAddress, NetBackend, NetworkInterfaceConfig, NetworkInterfaceUpdate, VhostChoice,
};
pub use objects::from_slice;
pub use page_codec::PageCodec;
pub use policy::{PolicyConfig, PolicyPreset};
pub use rate_limiter::{RateLimiterConfig, TokenBucket};
use rules::Check;
pub use rules::{ConfigFault, Faults, HostLimits};
pub use threads::ThreadShares;
use threads::Threaded;
pub use vsock::VsockConfig;

/// A whole machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// vCPUs and memory size.
    pub machine_config: MachineConfig,
    /// CPU features that are off by default.
    pub cpu: CpuConfig,
    /// What the guest boots. Required to start.
    pub boot_source: Option<BootSource>,
    /// How guest memory is backed on the host.
    pub memory: MemoryConfig,
    /// The balloon device, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// The display, if there is one.
    pub gpu: Option<GpuConfig>,
    /// The serial console.
    pub console: ConsoleConfig,
    /// Where the monitor's log goes.
    pub logger: Option<LoggerConfig>,
    /// Where metrics are written.
    pub metrics: Option<MetricsConfig>,

    /// Disks.
    pub drives: Vec<DriveConfig>,
    /// Network interfaces.
    pub network_interfaces: Vec<NetworkInterfaceConfig>,
    /// The vsock device, if there is one.
    pub vsock: Option<VsockConfig>,
    /// The entropy device, if there is one.
    pub entropy: Option<EntropyConfig>,
    /// Firecracker's persistent memory devices: not supported.
    #[schema(value_type = Vec<Object>, max_items = 0)]
    pub pmem: Absent<true>,
    /// The metadata service, if there is one.
    pub mmds_config: Option<MmdsConfig>,
    /// Firecracker's custom CPU templates: not supported.
    #[schema(value_type = Option<Object>)]
    pub cpu_config: Absent<false>,
    /// Firecracker's hot-pluggable memory: not supported.
    #[schema(value_type = Option<Object>)]
    pub memory_hotplug: Absent<false>,
    /// Firecracker's serial output file: `console` takes its place.
    #[schema(value_type = Option<Object>)]
    pub serial: Absent<false>,
}

impl VmConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is not JSON of this form.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = read_text(path, MAX_FILE_BYTES)
            .map_err(|cause| ConfigError::Unreadable { file: file.clone(), cause })?;
        from_slice(&text).map_err(|cause| ConfigError::Malformed { file, cause })
    }

    /// The backing of guest memory: from the `memory` section, else from Firecracker's
    /// `huge_pages`, else transparent huge pages.
    pub fn backing(&self) -> BackingKind {
        self.memory.backing_beside(self.machine_config.huge_pages)
    }

    /// Guest memory, laid out.
    ///
    /// # Errors
    ///
    /// The size of memory or of the contiguous region is one that cannot be laid out.
    pub fn layout(&self) -> Result<MemoryLayout, LayoutError> {
        // A count of MiB that overflows exceeds every layout.
        let cma = Bytes::from_mib(self.memory.cma_mib).unwrap_or(Bytes(u64::MAX));
        MemoryLayout::new(Bytes(self.machine_config.memory_bytes()), cma)
    }

    fn threaded(&self) -> Threaded<'_> {
        // One for the interface, and one of the kernel's for each pair of queues.
        let kernels = |interface: &NetworkInterfaceConfig| match interface.vhost {
            VhostChoice::On => usize::from(interface.queues),
            VhostChoice::Auto | VhostChoice::Off => 0,
        };
        let others = self.network_interfaces.iter().map(|i| 1 + kernels(i)).sum::<usize>()
            + usize::from(self.vsock.is_some())
            + usize::from(self.entropy.is_some());
        let watched = self.gpu.as_ref().is_some_and(|gpu| gpu.vnc_socket.is_some());
        Threaded { drives: &self.drives, others, watched }
    }

    /// Names of the interfaces that serve metadata.
    pub fn metadata_interfaces(&self) -> &[String] {
        self.mmds_config.as_ref().map_or(&[], |mmds| &mmds.network_interfaces)
    }

    /// What devices get of the threads that they may have.
    pub fn thread_shares(&self) -> ThreadShares {
        self.threaded().shares(self.memory.host_threads)
    }

    /// Checks all rules, and that nothing is missing that a machine needs.
    ///
    /// # Errors
    ///
    /// All faults at once.
    pub fn validate(&self, host: &HostLimits) -> Result<(), Faults> {
        self.check(None, host)
    }

    /// Checks all rules for a configuration that was `before` and may still grow.
    ///
    /// # Errors
    ///
    /// All faults at once.
    pub fn validate_change(&self, before: &Self, host: &HostLimits) -> Result<(), Faults> {
        self.check(Some(before), host)
    }

    /// The rules of all sections, in the order in which faults are reported.
    fn check(&self, before: Option<&Self>, host: &HostLimits) -> Result<(), Faults> {
        let change = Change { config: self, before, host };
        let machine = &self.machine_config;
        let layout = self.layout().err();
        let layout = layout.as_ref();
        let mut found = Faults::default();
        let faults = &mut found;
        machine_config::rules(&change.of(|c| &c.machine_config), layout, faults);
        memory::rules(&change.of(|c| &c.memory), machine, layout, faults);
        threads::rules(&change.of(|c| &c.memory), &self.threaded(), faults);
        policy::rules(&change.of(|c| &c.memory.policy), machine.mem_size_mib, faults);
        boot_source::rules(&change.of(|c| &c.boot_source), &self.memory, &self.drives, faults);
        balloon::rules(&change.of(|c| &c.balloon), machine.mem_size_mib, faults);
        gpu::rules(&change.of(|c| &c.gpu), faults);
        drives::rules(&change.of(|c| &c.drives), faults);
        let mmds = self.metadata_interfaces();
        network_interfaces::rules(&change.of(|c| &c.network_interfaces), mmds, faults);
        vsock::rules(&change.of(|c| &c.vsock), faults);
        mmds::rules(&change.of(|c| &c.mmds_config), &self.network_interfaces, faults);
        console::rules(&change.of(|c| &c.console), faults);
        found.into_result()
    }
}

/// A configuration to check, and its previous value.
struct Change<'a> {
    config: &'a VmConfig,
    before: Option<&'a VmConfig>,
    host: &'a HostLimits,
}

impl<'a> Change<'a> {
    /// The part of it that the rules of one section see.
    fn of<S>(&self, section: fn(&VmConfig) -> &S) -> Check<'a, S> {
        Check { section: section(self.config), before: self.before.map(section), host: self.host }
    }
}

/// A configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be opened or read.
    #[error("configuration file {file}: {cause}")]
    Unreadable {
        /// Its path.
        file: String,
        /// The host's error.
        cause: std::io::Error,
    },
    /// It is not valid JSON of this form; the cause names line and column.
    #[error("configuration file {file}: {cause}")]
    Malformed {
        /// Its path.
        file: String,
        /// The parser's message.
        cause: serde_json::Error,
    },
}

#[cfg(test)]
mod tests;
