// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! x86-64: the state of memory and CPU at the kernel's first instruction.
//!
//! Uses guest memory, `kvm-bindings` and the loader crates; knows no VM and no vCPU threads.
//!
//! - `layout`: fixed addresses: boot structures, device windows, interrupts
//! - `memory_map`: which stretches of guest memory are RAM, as the kernel sees it
//! - `kernel`: loads ELF and bzImage kernels, places the initrd
//! - `handover`: zero page (Linux boot protocol) and start info (PVH boot protocol)
//! - `registers`: segments, control registers, page tables, MSRs and local APIC at entry
//! - `cpuid`: CPUID leaves, topology above all
//! - `denied`: host CPU features that are hidden from guests by default
//! - `mptable`: the table that replaces ACPI for a kernel that is configured not to use it
//! - `acpi`: the tables that list CPUs, interrupt controller and devices

pub mod acpi;
pub mod cpuid;
pub mod denied;
pub mod handover;
pub mod kernel;
pub mod layout;
pub mod memory_map;
pub mod mptable;
pub mod registers;
