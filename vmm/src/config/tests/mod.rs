// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the configuration: accepted and rejected input, and the reported fields.
//!
//! - `json.rs`: the forms of a configuration file
//! - `machine.rs`: vCPUs, memory, balloon and display
//! - `boot.rs`: kernel, initrd and command line
//! - `devices.rs`: disks, network interfaces, sockets and the metadata service

mod boot;
mod devices;
mod json;
mod machine;

use std::io::Write;

use serde_json::json;

use super::*;

const HOST: HostLimits = HostLimits { memory_mib: 4096, mappings: HostLimits::DEFAULT_MAPPINGS };

fn elf() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut head = [0; 64];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (head[16], head[18]) = (2, 62); // executable, x86-64
    file.write_all(&head).unwrap();
    file
}

fn bootable(kernel: &Path) -> VmConfig {
    let boot =
        BootSource { kernel_image_path: kernel.to_owned(), initrd_path: None, boot_args: None };
    VmConfig { boot_source: Some(boot), ..VmConfig::default() }
}

fn fields(config: &VmConfig) -> Vec<&'static str> {
    match config.validate(&HOST) {
        Ok(()) => Vec::new(),
        Err(faults) => faults.0.iter().map(|fault| fault.field).collect(),
    }
}
