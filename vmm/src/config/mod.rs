// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine is to be: the one value that the command line, a configuration file and the API
//! all end in, and that the builder starts from.
//!
//! The JSON form is Firecracker's (`--config-file`, `GET /vm/config`), with sections of our own
//! beside it. Unknown fields are refused, every number carries its unit in its name, and
//! [`VmConfig::validate`] names every fault at once. Nothing here touches KVM.
//!
//! - `machine.rs`: vCPUs and the size of memory (`machine-config`)
//! - `memory.rs`: what that memory is made of on the host (`memory`, ours)
//! - `boot.rs`: kernel, initrd and command line (`boot-source`), and whether the files can be used
//! - `balloon.rs`: the balloon (`balloon`)
//! - `console.rs`: where the serial console goes (`console`, ours)
//! - `gpu.rs`: the display (`gpu`, ours)
//! - `observe.rs`: log and metrics (`logger`, `metrics`)
//! - `absent.rs`: Firecracker's sections that name devices Ballast does not have

mod absent;
mod balloon;
mod boot;
mod console;
mod gpu;
mod machine;
mod memory;
mod observe;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::host::files::read_text;

/// Largest configuration file, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;

pub use absent::Absent;
pub use balloon::{BalloonConfig, BalloonStatsUpdate, BalloonUpdate};
pub use boot::{BootSource, DEFAULT_BOOT_ARGS, ImageKind};
pub use console::ConsoleConfig;
pub use gpu::GpuConfig;
pub use machine::{CpuTemplate, HugePages, MAX_VCPUS, MachineConfig, MachineUpdate};
pub use memory::{BackingKind, CompactionConfig, MemoryConfig};
pub use observe::{LogLevel, LoggerConfig, MetricsConfig};

/// A whole machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// vCPUs and memory size.
    pub machine_config: MachineConfig,
    /// What the guest boots. Nothing starts without it.
    pub boot_source: Option<BootSource>,
    /// What guest memory is made of on the host.
    pub memory: MemoryConfig,
    /// The balloon device, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// The display, if there is one.
    pub gpu: Option<GpuConfig>,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
    /// Where the monitor's log goes.
    pub logger: Option<LoggerConfig>,
    /// Where metrics are written.
    pub metrics: Option<MetricsConfig>,

    /// Firecracker's drives: none here.
    #[schema(value_type = Vec<Object>, max_items = 0)]
    pub drives: Absent<true>,
    /// Firecracker's network interfaces: none here.
    #[schema(value_type = Vec<Object>, max_items = 0)]
    pub network_interfaces: Absent<true>,
    /// Firecracker's persistent memory devices: none here.
    #[schema(value_type = Vec<Object>, max_items = 0)]
    pub pmem: Absent<true>,
    /// Firecracker's vsock device: not here.
    #[schema(value_type = Option<Object>)]
    pub vsock: Absent<false>,
    /// Firecracker's entropy device: not here.
    #[schema(value_type = Option<Object>)]
    pub entropy: Absent<false>,
    /// Firecracker's metadata service: not here.
    #[schema(value_type = Option<Object>)]
    pub mmds_config: Absent<false>,
    /// Firecracker's custom CPU templates: not here.
    #[schema(value_type = Option<Object>)]
    pub cpu_config: Absent<false>,
    /// Firecracker's hot-pluggable memory: not here.
    #[schema(value_type = Option<Object>)]
    pub memory_hotplug: Absent<false>,
    /// Firecracker's serial output file: `console` takes its place.
    #[schema(value_type = Option<Object>)]
    pub serial: Absent<false>,
}

impl VmConfig {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = read_text(path, MAX_FILE_BYTES)
            .map_err(|cause| ConfigError::Unreadable { file: file.clone(), cause })?;
        serde_json::from_slice(&text).map_err(|cause| ConfigError::Malformed { file, cause })
    }

    /// What guest memory is made of: the `memory` section's word, else Firecracker's
    /// `huge_pages`, else transparent huge pages.
    pub fn backing(&self) -> BackingKind {
        self.memory.backing.unwrap_or(match self.machine_config.huge_pages {
            HugePages::None | HugePages::Transparent => BackingKind::Thp,
            HugePages::Huge2M => BackingKind::Hugetlb2M,
        })
    }

    /// Looks at everything that can be wrong before a machine is built, files included, and
    /// returns all of it.
    pub fn validate(&self, host: &HostLimits) -> Result<(), Faults> {
        let mut faults = Faults::default();
        self.machine_config.validate(host, &mut faults);
        self.memory.validate(self, &mut faults);
        match &self.boot_source {
            Some(boot) => boot.validate(&mut faults),
            None => faults.add("boot-source", "missing: there is no kernel to start"),
        }
        if let Some(balloon) = &self.balloon {
            balloon.validate(&self.machine_config, &mut faults);
        }
        if let Some(gpu) = &self.gpu {
            gpu.validate(&mut faults);
        }
        faults.into_result()
    }
}

/// What this host can give at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// All memory of the host, in MiB.
    pub memory_mib: u64,
}

impl HostLimits {
    /// Asks the kernel.
    pub fn read() -> Self {
        let info = rustix::system::sysinfo();
        // The fields are C `unsigned long`s: 64 bits wide on every host that has KVM for us.
        let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
        Self { memory_mib: u64::try_from(bytes >> 20).unwrap_or(u64::MAX) }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Fault {
    /// Section and field, as in the JSON form: `machine-config.vcpu_count`.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Notes one more.
    pub fn add(&mut self, field: &'static str, problem: impl Into<String>) {
        self.0.push(Fault { field, problem: problem.into() });
    }

    /// `Ok` where nothing was noted.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            write!(out, "{}{fault}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Why a configuration file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be opened or read.
    #[error("configuration file {file}: {cause}")]
    Unreadable {
        /// Its path.
        file: String,
        /// What the host said.
        cause: std::io::Error,
    },
    /// It is not the JSON that we take; the cause names line and column.
    #[error("configuration file {file}: {cause}")]
    Malformed {
        /// Its path.
        file: String,
        /// What the parser said.
        cause: serde_json::Error,
    },
}

#[cfg(test)]
mod tests;
