// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel and an initrd in guest memory.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use crate::arch::layout;
use crate::arch::memory_map::{MapEntry, MemoryKind};

/// Entry protocol of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KernelEntry {
    /// 32-bit protected mode without paging, `hvm_start_info` in EBX.
    Pvh {
        /// First instruction.
        rip: GuestAddress,
    },
    /// 64-bit mode, `boot_params` in RSI (Linux Documentation/arch/x86/boot.rst).
    Linux64 {
        /// First instruction.
        rip: GuestAddress,
        /// Header of the bzImage, if it was one.
        header: Option<setup_header>,
    },
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// How to enter it.
    pub entry: KernelEntry,
    /// First address that it leaves free while it starts.
    pub(super) end: u64,
}

impl LoadedKernel {
    /// First address that it leaves free while it starts.
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// First byte.
    pub start: GuestAddress,
    /// Size in bytes; below 4 GiB, since low RAM is.
    pub len: u32,
}

/// Where the RAM that holds the kernel ends.
pub(super) fn low_ram_end(map: &[MapEntry]) -> u64 {
    map.iter()
        .find(|e| e.kind == MemoryKind::Ram && e.start == layout::HIGH_RAM)
        .map_or(0, |e| e.start.0 + e.len)
}
