// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest-physical addresses, ports and interrupt lines of the machine, other than RAM itself
//! (`mm::layout` places that).
//!
//! ```text
//! 0x0000_0500  GDT                          0x000a_0000  nothing (RAM ends for the kernel)
//! 0x0000_6000  PVH start info, modules, map 0x000e_0000  ACPI tables, RSDP first
//! 0x0000_7000  zero page                    0x0010_0000  kernel
//! 0x0000_8ff0  boot stack                   ...          initrd at the top of low RAM
//! 0x0000_9000  page tables                  0xd000_0000  virtio-mmio windows, 4 KiB each
//! 0x0002_0000  command line                 0xfec0_0000  IOAPIC; 0xfee0_0000 local APICs
//! ```

use vm_memory::GuestAddress;

/// Global descriptor table of the first instructions.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `hvm_start_info`; the module list and the memory map follow it.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Top of the stack that the first instructions may use.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// PML4, page-directory-pointer table and page directory, one page each.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line with its terminating zero.
pub const CMDLINE_MAX: usize = crate::config::CMDLINE_MAX;
/// End of conventional memory, where a PC has its extended BIOS data area.
pub const LOW_RAM_END: GuestAddress = GuestAddress(0x9_fc00);
/// ACPI tables. The RSDP is the first of them, so that a kernel that scans for it (ACPI 6.5,
/// 5.2.5.1) finds it immediately.
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// Where they must have ended.
pub const ACPI_END: GuestAddress = GuestAddress(0xf_0000);
/// The MP table, in the stretch that kernels scan for it (MP 1.4, 4).
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);
/// Where a PC has its firmware's first instruction, at F000:FFF0 of real mode.
pub const RESET_STUB: GuestAddress = GuestAddress(0xf_fff0);
/// Memory above 1 MiB: where kernels are loaded.
pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);

/// First virtio-mmio window.
pub const MMIO_START: GuestAddress = GuestAddress(0xd000_0000);
/// Where they must have ended: the IOAPIC's registers are there.
pub const MMIO_END: GuestAddress = GuestAddress(IOAPIC as u64);
/// Size of one such window.
pub const MMIO_SIZE: u64 = 0x1000;
/// Size of the GPU's host-visible window, at the start of the windows above RAM. Equal to the limit
/// on the host memory that a guest can allocate through it.
pub const GPU_WINDOW_SIZE: u64 = 256 << 20;
/// IOAPIC, as KVM's is.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC, as KVM's is.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that Intel CPUs without unrestricted guest mode need for real mode.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for the same.
pub const TSS: usize = 0xfffb_d000;

/// Interrupt line of the keyboard controller.
pub const IRQ_KEYBOARD: u32 = 1;
/// Interrupt line of the serial port.
pub const IRQ_SERIAL: u32 = 4;
/// First interrupt line of a virtio device.
pub const IRQ_VIRTIO_FIRST: u32 = 5;
/// Last interrupt line of the IOAPIC.
pub const IRQ_LAST: u32 = 23;

/// First port of the serial port.
pub const PORT_SERIAL: u16 = 0x3f8;
/// Ports of the serial port.
pub const PORT_SERIAL_LEN: u16 = 8;
/// Data port of the keyboard controller.
pub const PORT_KEYBOARD: u16 = 0x60;
/// Data to command port, inclusive.
pub const PORT_KEYBOARD_LEN: u16 = 5;
/// First port of the power registers: sleep control, sleep status, reset.
pub const PORT_POWER: u16 = 0x600;
/// Ports of the power registers.
pub const PORT_POWER_LEN: u16 = 3;
