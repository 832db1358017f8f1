// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Inputs of rules, and the faults that they find.

use std::fmt;
use std::path::Path;

use mm::units::SaturatingInto;

use crate::one_line::one_line;

/// Input of the rules of one section. Data from other sections is passed separately.
pub(super) struct Check<'a, S> {
    /// The section to judge.
    pub(super) section: &'a S,
    /// Limits of this host.
    pub(super) host: &'a HostLimits,
    /// The section before a change; `None` when a machine is started.
    pub(super) before: Option<&'a S>,
}

impl<S: PartialEq> Check<'_, S> {
    /// Whether a machine is being started, so that nothing may be missing.
    pub(super) fn starts(&self) -> bool {
        self.before.is_none()
    }

    /// Whether to open files that the section names: at the start, and when the section changes.
    pub(super) fn opens_files(&self) -> bool {
        self.before != Some(self.section)
    }
}

pub(super) use crate::host::sockets::MAX_PATH as MAX_SOCKET_PATH;

/// Checks the path of a Unix socket to create.
pub(super) fn socket_path(field: &'static str, path: &Path, faults: &mut Faults) {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        faults.add(field, "empty: give the path of the socket to create");
    } else if bytes.len() > MAX_SOCKET_PATH {
        let problem =
            format!("{} bytes: the limit for a socket path is {MAX_SOCKET_PATH}", bytes.len());
        faults.add(field, problem);
    } else if bytes.contains(&0) {
        faults.add(field, "contains a zero byte");
    }
}

/// Checks the name of a device: Firecracker's rule (letters and digits of any script), so that it can
/// be part of a path.
pub(super) fn device_id(field: &'static str, id: &str, faults: &mut Faults) {
    let fits = |letter: char| letter.is_alphanumeric() || letter == '_';
    if id.is_empty() || !id.chars().all(fits) {
        faults.add(field, format!("`{id}`: give letters, digits and underscores"));
    }
}

/// Limits of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// All memory of the host, in MiB.
    pub memory_mib: u64,
    /// Mappings that a process may have (`vm.max_map_count`).
    pub mappings: u64,
}

impl HostLimits {
    /// Linux's default limit per process.
    pub const DEFAULT_MAPPINGS: u64 = 65_530;

    /// Asks the kernel. In a jail without /proc, mappings are Linux's default.
    pub fn read() -> Self {
        let info = rustix::system::sysinfo();
        // The fields are C `unsigned long`s: 64 bits wide on every host that has KVM for us.
        let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
        let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(Self::DEFAULT_MAPPINGS);
        Self { memory_mib: (bytes >> 20).saturating_u64(), mappings }
    }
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigFault {
    /// Section and field, as in the JSON form: `machine-config.vcpu_count`.
    pub field: &'static str,
    /// The problem, and how to fix it.
    pub problem: String,
}

/// All faults of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<ConfigFault>);

impl Faults {
    /// Notes one more. Control characters, which names of files may have, are escaped.
    pub fn add(&mut self, field: &'static str, problem: impl Into<String>) {
        let problem = one_line(&problem.into()).into_owned();
        self.0.push(ConfigFault { field, problem });
    }

    /// `Ok` where nothing was noted.
    ///
    /// # Errors
    ///
    /// The faults that were noted.
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
