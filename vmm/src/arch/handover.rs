// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data passed to the kernel at its entry: command line, initrd, memory map, ACPI root.
//!
//! Linux: a zero page (Documentation/arch/x86/zero-page.rst). PVH: a start info with its module
//! list and memory map behind it (xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::kernel::LoadedInitrd;
use super::layout;
use super::memory_map::MapEntry;

/// `boot_flag` of every Linux setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS": a setup header is present.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `type_of_loader`: a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `kernel_alignment` for images without a header: the value that x86-64 kernels are built with.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// Data passed to the kernel, except the address of the structure.
pub struct Handover<'a> {
    /// Initrd, if any.
    pub initrd: Option<LoadedInitrd>,
    /// Memory map.
    pub map: &'a [MapEntry],
    /// The RSDP.
    pub rsdp: GuestAddress,
    /// Size of the command line at [`layout::CMDLINE`], without its terminating zero.
    pub cmdline_len: u32,
}

/// Why the structure could not be written.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Guest memory is too small for it.
    #[error("boot structures do not fit in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The boot protocol has 32 bits for the address.
    #[error("address {0:#x} of a boot structure is above 4 GiB")]
    Above4Gib(u64),
    /// More stretches of memory than the zero page has entries for.
    #[error("memory map of {0} entries is too long for the boot protocol")]
    MapTooLong(usize),
}

/// Writes the zero page; `header` is the bzImage's, if the kernel is one.
///
/// # Errors
///
/// [`HandoverError`]: the page cannot be written to guest RAM, or has no room for the memory map.
pub fn write_zero_page<M: GuestMemoryBackend>(
    mem: &M,
    header: Option<setup_header>,
    handover: &Handover<'_>,
) -> Result<(), HandoverError> {
    // On the heap: the structure is a page, and stacks are small.
    let mut params = Box::<boot_params>::default();
    params.hdr = header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    });
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(layout::CMDLINE)?;
    params.hdr.cmdline_size = handover.cmdline_len;
    if let Some(initrd) = handover.initrd {
        params.hdr.ramdisk_image = low(initrd.start)?;
        params.hdr.ramdisk_size = initrd.len;
    }
    params.acpi_rsdp_addr = handover.rsdp.0;
    let too_long = || HandoverError::MapTooLong(handover.map.len());
    params.e820_entries = u8::try_from(handover.map.len()).map_err(|_| too_long())?;
    let mut table = params.e820_table;
    for (at, entry) in handover.map.iter().enumerate() {
        *table.get_mut(at).ok_or_else(too_long)? =
            boot_e820_entry { addr: entry.start.0, size: entry.len, r#type: entry.kind as u32 };
    }
    params.e820_table = table;
    Ok(mem.write_slice(params.as_slice(), layout::ZERO_PAGE)?)
}

/// Writes the start info and the structures that it points to.
///
/// # Errors
///
/// [`HandoverError`]: the structure cannot be written to guest RAM.
pub fn write_start_info<M: GuestMemoryBackend>(
    mem: &M,
    handover: &Handover<'_>,
) -> Result<(), HandoverError> {
    let modules = GuestAddress(layout::PVH_START_INFO.0 + size_of::<hvm_start_info>() as u64);
    let map_start = GuestAddress(modules.0 + size_of::<hvm_modlist_entry>() as u64);
    let room = (layout::ZERO_PAGE.0 - map_start.0) as usize / size_of::<hvm_memmap_table_entry>();
    let memmap_entries = u32::try_from(handover.map.len())
        .ok()
        .filter(|_| handover.map.len() <= room)
        .ok_or(HandoverError::MapTooLong(handover.map.len()))?;
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: handover.rsdp.0,
        memmap_paddr: map_start.0,
        memmap_entries,
        ..Default::default()
    };
    if let Some(initrd) = handover.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = modules.0;
        let module = hvm_modlist_entry {
            paddr: initrd.start.0,
            size: u64::from(initrd.len),
            ..Default::default()
        };
        mem.write_obj(module, modules)?;
    }
    for (at, entry) in (0u64..).zip(handover.map) {
        let address = GuestAddress(map_start.0 + at * size_of::<hvm_memmap_table_entry>() as u64);
        let entry = hvm_memmap_table_entry {
            addr: entry.start.0,
            size: entry.len,
            type_: entry.kind as u32,
            reserved: 0,
        };
        mem.write_obj(entry, address)?;
    }
    Ok(mem.write_obj(info, layout::PVH_START_INFO)?)
}

/// An address in a field of 32 bits.
fn low(address: GuestAddress) -> Result<u32, HandoverError> {
    u32::try_from(address.0).map_err(|_| HandoverError::Above4Gib(address.0))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::arch::memory_map::memory_map;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    fn handover(map: &[MapEntry]) -> Handover<'_> {
        let initrd = Some(LoadedInitrd { start: GuestAddress(8 << 20), len: 77 });
        Handover { initrd, map, rsdp: layout::ACPI_START, cmdline_len: 5 }
    }

    #[test]
    fn zero_page_tells_the_whole_map() {
        let mem = memory();
        let map = memory_map(&mem);
        write_zero_page(&mem, None, &handover(&map)).unwrap();
        let params: boot_params = mem.read_obj(layout::ZERO_PAGE).unwrap();
        assert_eq!(usize::from(params.e820_entries), map.len());
        let first = params.e820_table[0];
        assert_eq!({ first.size }, layout::LOW_RAM_END.0);
        assert_eq!({ params.hdr.ramdisk_image }, 8 << 20);
        assert_eq!({ params.hdr.header }, HEADER_MAGIC);
        assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI_START.0);
        let long = vec![map[0]; 200];
        assert!(matches!(
            write_zero_page(&mem, None, &handover(&long)),
            Err(HandoverError::MapTooLong(200))
        ));
    }

    #[test]
    fn start_info_points_to_module_and_map() {
        let mem = memory();
        let map = memory_map(&mem);
        write_start_info(&mem, &handover(&map)).unwrap();
        let info: hvm_start_info = mem.read_obj(layout::PVH_START_INFO).unwrap();
        assert_eq!(info.nr_modules, 1);
        let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (8 << 20, 77));
        let last: hvm_memmap_table_entry =
            mem.read_obj(GuestAddress(info.memmap_paddr + 24 * (map.len() as u64 - 1))).unwrap();
        assert_eq!(last.addr + last.size, 16 << 20);
        let long = vec![map[0]; 500];
        assert!(write_start_info(&mem, &handover(&long)).is_err());
    }
}
