// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel, initrd, command line, ACPI tables and the structure that leads the kernel to them.

use devices::legacy::power;
use linux_loader::cmdline::{self, Cmdline};
use mm::guest_ram::GuestRam;
use mm::layout::MemoryLayout;
use tracing::warn;
use vm_memory::{Bytes as _, GuestAddress};

use super::error::BuildError;
use crate::arch::acpi::{self, AcpiMachine, MmioWindow};
use crate::arch::handover::{self, Handover};
use crate::arch::kernel::{self, KernelEntry, LoadedKernel};
use crate::arch::memory_map::memory_map;
use crate::arch::{layout, mptable};
use crate::config::{VmConfig, drives, without_acpi};

/// Code at the reset vector: guests jump there to reset the machine. Writes to the reset register,
/// then halts.
const RESET_STUB: [u8; 9] = [
    0xba,
    (PORT_RESET & 0xff) as u8,
    (PORT_RESET >> 8) as u8, // mov dx, PORT_RESET
    0xb0,
    power::RESET_VALUE, // mov al, RESET_VALUE
    0xee,               // out dx, al
    0xf4,               // hlt
    0xeb,
    0xfd, // jmp to the hlt
];
const PORT_RESET: u16 = layout::PORT_POWER + power::RESET;

/// Loads kernel and initrd, and writes command line, ACPI tables and boot structure.
pub(super) fn load(
    config: &VmConfig,
    ram: &GuestRam,
    windows: &[MmioWindow],
) -> Result<LoadedKernel, BuildError> {
    let boot = config.boot_source.as_ref().ok_or(BuildError::NoBootSource)?;
    let mem = ram.memory().as_ref();
    let map = memory_map(mem);
    let kernel = kernel::load_kernel(mem, &map, &boot.kernel_image_path)?;
    let ceiling = ram.layout().cma().map_or(GuestAddress(u64::MAX), |cma| cma.address());
    let initrd = match &boot.initrd_path {
        Some(path) => Some(kernel::load_initrd(mem, &map, &kernel, path, ceiling)?),
        None => None,
    };
    let legacy = without_acpi(boot.cmdline());
    if let Some(option) = legacy {
        warn!(
            option,
            "the guest gets an MP table instead of ACPI tables: it cannot power itself off and \
             finds devices only through its command line"
        );
    }
    let root = drives::root_argument(&config.drives);
    let cmdline = command_line(boot.cmdline(), root.as_deref(), ram.layout(), windows)?;
    let length = cmdline.as_cstring()?.as_bytes().len();
    // Below CMDLINE_MAX, which is the capacity it was built with.
    let length = u32::try_from(length).map_err(|_| cmdline::Error::TooLarge)?;
    linux_loader::loader::load_cmdline(mem, layout::CMDLINE, &cmdline)
        .map_err(BuildError::CmdlineLoad)?;
    let cpus = config.machine_config.vcpu_count;
    let rsdp = if legacy.is_some() {
        mptable::write(mem, cpus)?;
        GuestAddress(0)
    } else {
        acpi::write_tables(mem, &AcpiMachine { cpus, windows })?
    };
    mem.write_slice(&RESET_STUB, layout::RESET_STUB)?;
    let handover = Handover { initrd, map: &map, rsdp, cmdline_len: length };
    match kernel.entry {
        KernelEntry::Pvh { .. } => handover::write_start_info(mem, &handover)?,
        KernelEntry::Linux64 { header, .. } => handover::write_zero_page(mem, header, &handover)?,
    }
    Ok(kernel)
}

/// The user's command line with the machine's additions: the root device, the CMA region, and the
/// devices for a kernel without ACPI.
fn command_line(
    user: &str,
    root: Option<&str>,
    memory: &MemoryLayout,
    windows: &[MmioWindow],
) -> Result<Cmdline, BuildError> {
    let mut cmdline = match user.trim() {
        "" => Cmdline::new(layout::CMDLINE_MAX)?,
        user => Cmdline::try_from(user, layout::CMDLINE_MAX)?,
    };
    if let Some(root) = root {
        cmdline.insert_str(root)?;
    }
    if let Some(cma) = memory.cma() {
        cmdline.insert_str(format!("cma={}@{:#x}", cma.bytes().0, cma.address().0))?;
    }
    if without_acpi(user).is_some() {
        for window in windows {
            let base = GuestAddress(window.base.into());
            cmdline.add_virtio_mmio_device(layout::MMIO_SIZE, base, window.gsi, None)?;
        }
    }
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use mm::units::Bytes;

    use super::*;

    fn line(user: &str, cma_mib: u64) -> String {
        let mib = |n| Bytes::from_mib(n).unwrap();
        let layout = MemoryLayout::new(mib(512), mib(cma_mib)).unwrap();
        let windows = [MmioWindow { base: 0xd000_0000, gsi: 5 }];
        let line = command_line(user, None, &layout, &windows).unwrap();
        line.as_cstring().unwrap().into_string().unwrap()
    }

    #[test]
    fn command_line_tells_what_tables_do_not() {
        assert_eq!(line("quiet", 0), "quiet");
        assert_eq!(line("quiet", 128), "quiet cma=134217728@0x17c00000");
        assert_eq!(line("acpi=off", 0), "acpi=off virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(
            line("acpi=off -- single", 0),
            "acpi=off virtio_mmio.device=4K@0xd0000000:5 -- single"
        );
        assert_eq!(line("", 0), "");
        let layout = MemoryLayout::new(Bytes::from_mib(64).unwrap(), Bytes(0)).unwrap();
        let line = command_line("quiet -- single", Some("root=/dev/vda rw"), &layout, &[]).unwrap();
        let line = line.as_cstring().unwrap().into_string().unwrap();
        assert_eq!(line, "quiet root=/dev/vda rw -- single");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let layout = MemoryLayout::new(Bytes::from_mib(16).unwrap(), Bytes(0)).unwrap();
        assert!(command_line(&"x".repeat(3000), None, &layout, &[]).is_err());
    }
}
