// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requested guest, independent of the monitor.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::limits;
use crate::payload::Payload;

/// A guest.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk, if there is one.
    pub initrd: Option<PathBuf>,
    /// Words of the command line beyond the console and what the monitor itself needs.
    pub boot_args: String,
    /// Whether the command line says how to reboot; if not, the kernel decides.
    pub says_how_to_reboot: bool,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The balloon, if there is to be one.
    pub balloon: Option<Balloon>,
    /// More sections of Ballast's configuration file. Firecracker gets them as they are; of `drives`
    /// and `network-interfaces` QEMU gets what it needs, and Cloud Hypervisor of `vsock` as well.
    pub more: serde_json::Map<String, Value>,
}

/// A balloon, empty at the start.
#[derive(Debug, Clone, Copy)]
pub struct Balloon {
    /// The guest may take pages back before it kills a process.
    pub deflate_on_oom: bool,
    /// The guest reports free pages by itself.
    pub reporting: bool,
    /// Whole blocks are offered; peers have none to offer.
    pub blocks: bool,
}

impl Default for Balloon {
    fn default() -> Self {
        Self { deflate_on_oom: true, reporting: false, blocks: true }
    }
}

impl Spec {
    /// Our kernel (ELF) with the agent, one vCPU and a balloon.
    #[must_use]
    pub fn new(payload: &Payload, memory_mib: u64) -> Self {
        Self {
            kernel: payload.vmlinux(),
            initrd: Some(payload.initrd()),
            boot_args: String::new(),
            says_how_to_reboot: true,
            cpus: 1,
            memory_mib: limits::memory_mib(memory_mib),
            balloon: Some(Balloon::default()),
            more: serde_json::Map::new(),
        }
    }

    /// Debian's kernel with the agent and the modules that it needs.
    #[must_use]
    pub fn debian(payload: &Payload, memory_mib: u64) -> Self {
        Self {
            kernel: payload.debian_kernel(),
            initrd: Some(payload.debian_initrd()),
            ..Self::new(payload, memory_mib)
        }
    }

    /// Debian's kernel with what it needs for a display, too.
    #[must_use]
    pub fn debian_display(payload: &Payload, memory_mib: u64) -> Self {
        Self { initrd: Some(payload.debian_display_initrd()), ..Self::debian(payload, memory_mib) }
    }

    /// Debian's kernel with the modules of disks, network, vsock and random numbers.
    #[must_use]
    pub fn debian_devices(payload: &Payload, memory_mib: u64) -> Self {
        Self { initrd: Some(payload.debian_devices_initrd()), ..Self::debian(payload, memory_mib) }
    }

    /// With a display of that size, in pixels, and so many scanouts.
    #[must_use]
    pub fn with_gpu(mut self, width: u32, height: u32, scanouts: u32) -> Self {
        let gpu = json!({ "width_px": width, "height_px": height, "scanouts": scanouts });
        self.more.insert("gpu".into(), gpu);
        self
    }

    /// The entries of a section that is a list: `drives`, `network-interfaces`.
    pub(super) fn entries<'a>(&'a self, section: &str) -> impl Iterator<Item = &'a Value> {
        self.more.get(section).and_then(Value::as_array).into_iter().flatten()
    }

    /// What Firecracker and Ballast add to the command line for a root device.
    pub(super) fn root_words(&self) -> String {
        let root = self.entries("drives").find(|drive| drive["is_root_device"] == json!(true));
        root.map_or_else(String::new, |drive| {
            let read_only = drive["is_read_only"] == json!(true);
            format!(" root=/dev/vda {}", if read_only { "ro" } else { "rw" })
        })
    }

    /// The kernel's command line. Of the kernel's messages those of notice and above are printed:
    /// each character costs an exit, and in the outer machine that is most of a boot's time.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let reboot = if self.says_how_to_reboot { " reboot=k" } else { "" };
        let debug = limits::debug_boot_args();
        format!("console=ttyS0{reboot} panic=-1 loglevel=6{debug} {}", self.boot_args)
            .trim_end()
            .to_owned()
    }
}
