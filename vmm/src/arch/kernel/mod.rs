// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel (ELF or bzImage, told apart by their magic) and an initrd into guest memory.
//!
//! - `extent.rs`: how far a kernel reaches, by its headers
//! - `initrd.rs`: the initrd, as high as it may lie
//! - `loaded.rs`: both, in guest memory
//! - `error.rs`: errors of loading

mod error;
mod extent;
mod initrd;
mod loaded;

use std::path::Path;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use mm::layout::HOLE_START;
use vm_memory::{Address, GuestMemoryBackend};

pub use self::error::KernelError;
use self::extent::{Format, KernelExtent, extent};
pub use self::initrd::load_initrd;
use self::loaded::low_ram_end;
pub use self::loaded::{KernelEntry, LoadedInitrd, LoadedKernel};
use super::layout;
use crate::arch::memory_map::MapEntry;
use crate::host::contents::FileContents;
use crate::host::files::open_regular;

const MIB: u64 = 1 << 20;
/// `xloadflags`: the kernel has the 64-bit entry point 0x200 bytes in (boot protocol 2.12).
const XLF_KERNEL_64: u16 = 1;
/// Offset of that entry point from where the protected-mode kernel was loaded.
const ENTRY_64: u64 = 0x200;
/// First version of the protocol with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;

/// Loads the kernel at `path`. An ELF kernel with a PVH note is entered by it, since that is an
/// agreed interface; one without is entered as Linux's own decompressor would enter it.
///
/// # Errors
///
/// Where the file is no kernel, cannot be read, or needs more memory than `map` has.
pub fn load_kernel<M: GuestMemoryBackend>(
    mem: &M,
    map: &[MapEntry],
    path: &Path,
) -> Result<LoadedKernel, KernelError> {
    let read_error = |source| KernelError::Read { what: "kernel", path: path.to_owned(), source };
    let load_error = |source| KernelError::Load { path: path.to_owned(), source };
    let mut file = open_regular(path).map_err(read_error)?;
    let format = match FileContents::of(&file).map_err(read_error)? {
        FileContents::Elf => Format::Elf,
        FileContents::BzImage => Format::BzImage,
        FileContents::Other(what) => {
            return Err(KernelError::NotAKernel { path: path.to_owned(), what });
        }
    };
    let ram_end = low_ram_end(map);
    let check = |needed: u64| {
        if needed <= ram_end || needed > HOLE_START.0 {
            return Ok(());
        }
        let (needed_mib, has_mib) = (needed.div_ceil(MIB), ram_end / MIB);
        Err(KernelError::TooLittleMemory { path: path.to_owned(), needed_mib, has_mib })
    };
    // Before loading: the loaders only say that they cannot.
    let KernelExtent { in_file, in_memory: needed, lowest } =
        extent(&file, &format).map_err(read_error)?;
    let has = file.metadata().map_err(read_error)?.len();
    if has < in_file {
        return Err(KernelError::CutOff { path: path.to_owned(), has, named: in_file });
    }
    if let Some(at) = lowest.filter(|at| *at < layout::HIGH_RAM.0) {
        return Err(KernelError::TooLow { path: path.to_owned(), at });
    }
    check(needed)?;
    let kernel = match format {
        Format::Elf => {
            let loaded =
                Elf::load(mem, None, &mut file, Some(layout::HIGH_RAM)).map_err(load_error)?;
            let entry = match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(rip) => KernelEntry::Pvh { rip },
                _ => KernelEntry::Linux64 { rip: loaded.kernel_load, header: None },
            };
            // The loader's end address ignores segments that are larger in the file than in memory.
            LoadedKernel { entry, end: loaded.kernel_end.max(needed) }
        }
        Format::BzImage => {
            let loaded =
                BzImage::load(mem, None, &mut file, Some(layout::HIGH_RAM)).map_err(load_error)?;
            let header = loaded
                .setup_header
                .filter(|h| h.version >= PROTOCOL_2_12 && h.xloadflags & XLF_KERNEL_64 != 0)
                .ok_or_else(|| KernelError::No64BitEntry(path.to_owned()))?;
            let rip = loaded.kernel_load.unchecked_add(ENTRY_64);
            // It unpacks itself to `pref_address` and needs `init_size` bytes from there.
            let unpacked = header.pref_address.saturating_add(u64::from(header.init_size));
            let entry = KernelEntry::Linux64 { rip, header: Some(header) };
            LoadedKernel { entry, end: loaded.kernel_end.max(unpacked) }
        }
    };
    check(kernel.end)?;
    let (KernelEntry::Pvh { rip } | KernelEntry::Linux64 { rip, .. }) = kernel.entry;
    let ram = layout::HIGH_RAM.0..ram_end;
    if !ram.contains(&rip.0) || kernel.end > ram_end {
        return Err(KernelError::Outside { path: path.to_owned(), rip: rip.0, end: kernel.end });
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests;
