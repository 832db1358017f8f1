// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `boot-source`: what the guest boots.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::drives::{DriveConfig, root_argument};
use super::memory::MemoryConfig;
use super::rules::{Check, Faults};
use crate::host::contents::FileContents;
use crate::host::files::open_regular;

/// Default kernel command line: the console on the serial port, reset through the
/// keyboard controller, no waiting after a panic and for absent PS/2 devices.
pub const DEFAULT_BOOT_ARGS: &str =
    "console=ttyS0 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd";

/// Longest command line with its terminating zero: Linux's limit on x86 (COMMAND_LINE_SIZE).
pub const CMDLINE_MAX: usize = 2048;

/// Most virtio devices of a machine: one for each free interrupt line of the IOAPIC, 5 to 23.
const MAX_DEVICES: usize = 19;

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: ELF `vmlinux` or `bzImage`.
    #[schema(value_type = String)]
    pub kernel_image_path: PathBuf,
    /// Initial RAM file system.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line; [`DEFAULT_BOOT_ARGS`] by default.
    #[serde(default)]
    pub boot_args: Option<String>,
}

impl BootSource {
    /// The kernel command line, without the machine's additions.
    pub fn cmdline(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS)
    }
}

/// The rules of this section, for a machine with this memory and these disks.
pub(super) fn rules(
    check: &Check<'_, Option<BootSource>>,
    memory: &MemoryConfig,
    drives: &[DriveConfig],
    faults: &mut Faults,
) {
    let Some(boot) = check.section else {
        if check.starts() {
            faults.add("boot-source", "missing: give the path of a kernel");
        }
        return;
    };
    let cmdline = boot.cmdline();
    command_line_rules(cmdline, added(cmdline, memory, drives), faults);
    if check.opens_files() {
        file_rules(boot, faults);
    }
}

fn command_line_rules(cmdline: &str, added: usize, faults: &mut Faults) {
    if !cmdline.trim().bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        faults.add("boot-source.boot_args", "contains a character that is not printable ASCII");
    }
    let limit = (CMDLINE_MAX - 1).saturating_sub(added);
    let len = cmdline.trim().len();
    if len > limit {
        let problem = format!(
            "{len} bytes: give at most {limit} (the kernel's limit, less the arguments that the \
             machine adds)"
        );
        faults.add("boot-source.boot_args", problem);
    }
}

/// Maximum length of the machine's additions to the command line: the CMA region, the root file
/// system, and each virtio device for a kernel without ACPI.
fn added(cmdline: &str, memory: &MemoryConfig, drives: &[DriveConfig]) -> usize {
    let cma = if memory.cma_mib > 0 { " cma=0123456789012@0x0123456789ab".len() } else { 0 };
    let devices = match without_acpi(cmdline) {
        Some(_) => MAX_DEVICES * " virtio_mmio.device=4K@0xd0000000:23".len(),
        None => 0,
    };
    let root = root_argument(drives).map_or(0, |root| root.len() + 1);
    cma + devices + root
}

/// Options that disable ACPI's interrupts or interrupt controllers. With ACPI tables such a kernel
/// finds no interrupt line, as a hardware-reduced platform has no legacy controller. Without them
/// it uses the MP table and the PICs.
const WITHOUT_ACPI: [&str; 4] = ["acpi=off", "acpi=noirq", "noapic", "nolapic"];

/// The first option of `cmdline` that disables ACPI. Arguments after `--` are for init.
pub fn without_acpi(cmdline: &str) -> Option<&'static str> {
    cmdline
        .split_whitespace()
        .take_while(|word| *word != "--")
        .find_map(|word| WITHOUT_ACPI.into_iter().find(|option| *option == word))
}

fn file_rules(boot: &BootSource, faults: &mut Faults) {
    let kernel = &boot.kernel_image_path;
    if let Some(problem) = kernel_problem(contents(kernel)) {
        let problem = format!("{}: {problem}", kernel.display());
        faults.add("boot-source.kernel_image_path", problem);
    }
    if let Some(initrd) = &boot.initrd_path
        && let Some(problem) = initrd_problem(contents(initrd))
    {
        faults.add("boot-source.initrd_path", format!("{}: {problem}", initrd.display()));
    }
}

fn contents(path: &Path) -> io::Result<FileContents> {
    FileContents::of(&open_regular(path)?)
}

fn kernel_problem(found: io::Result<FileContents>) -> Option<String> {
    match found {
        Ok(FileContents::Elf | FileContents::BzImage) => None,
        Ok(FileContents::Other(what)) => {
            Some(format!("{what}: give an ELF vmlinux or a bzImage for x86-64"))
        }
        Err(cause) => Some(cause.to_string()),
    }
}

/// An initrd may be anything that some kernel unpacks or mounts, but no kernel.
fn initrd_problem(found: io::Result<FileContents>) -> Option<String> {
    match found {
        Ok(kernel @ (FileContents::Elf | FileContents::BzImage)) => {
            Some(format!("{kernel}, which is a kernel: give an initial RAM disk"))
        }
        Ok(FileContents::Other(_)) => None,
        Err(cause) => Some(cause.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_beyond_the_limit_leave_no_room() {
        let mut faults = Faults(Vec::new());
        command_line_rules("quiet", CMDLINE_MAX + 1, &mut faults);
        assert_eq!(faults.0.len(), 1, "{faults}");
        assert!(faults.to_string().contains("give at most 0"), "{faults}");
    }
}
