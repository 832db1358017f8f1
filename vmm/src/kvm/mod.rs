// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's KVM: whether it is present and permitted, and everything a machine needs from it
//! except vCPUs.
//!
//! May use: kvm-ioctls, `mm` and `arch::layout`. Knows no configuration and no API.
//!
//! - `mod.rs` (here): opens /dev/kvm and checks the capabilities that a machine needs
//! - `memory.rs`: guest RAM, one memory slot a region
//! - `window.rs`: the GPU's host-visible window, one memory slot a mapping
//! - `register_page.rs`: devices' registers, readable without an exit, one memory slot a device
//! - `irq.rs`: irqfd and ioeventfd; hands out interrupt lines

pub mod irq;
pub mod memory;
pub mod register_page;
pub mod window;

use std::fs;
use std::os::unix::fs::MetadataExt;

use kvm_ioctls::{Cap, Kvm};

const DEVICE: &str = "/dev/kvm";
/// The only version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Required capabilities; all of them are in Linux since 4.13.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why this host runs no machines.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The module is not loaded, or the CPU cannot.
    #[error(
        "there is no {DEVICE}: load kvm-intel or kvm-amd, with virtualization on in the firmware \
         (or, in a virtual machine, nested virtualization on in its host)"
    )]
    Absent,
    /// The user may not.
    #[error("no permission for {DEVICE}: add the user to group {group}, or run as root")]
    Permission {
        /// The group that owns the device.
        group: String,
    },
    /// Any other error of open(2).
    #[error("cannot open {DEVICE}: {0}")]
    Open(kvm_ioctls::Error),
    /// Not a KVM, or one from another world.
    #[error("{DEVICE} has interface version {0}, not {API_VERSION}")]
    Version(i32),
    /// Too old, or cut down.
    #[error("KVM lacks {0}: Ballast needs the KVM of Linux 4.13 or later")]
    Lacks(&'static str),
}

/// Opens KVM and makes sure that it has all that a machine needs.
///
/// # Errors
///
/// [`KvmError`]: KVM is missing, may not be opened, or lacks a capability.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Absent,
        libc::EACCES | libc::EPERM => KvmError::Permission { group: owning_group() },
        _ => KvmError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}

/// Whether the host's CPU virtualizes. Where it does not, a /dev/kvm is an emulation of one, and
/// not every guest survives it.
pub fn cpu_virtualizes() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

fn owning_group() -> String {
    let gid = fs::metadata(DEVICE).map_or(0, |metadata| metadata.gid());
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    group_name(&groups, gid).unwrap_or_else(|| gid.to_string())
}

/// The name of group `gid` in the text of group(5).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nbroken\nkvm:x:106:alice,bob\n";
        assert_eq!(group_name(groups, 106).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
    }
}
