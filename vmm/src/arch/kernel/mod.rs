// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel (ELF or bzImage, told apart by their magic) and an initrd into guest memory.
//!
//! - `headers.rs`: the headers of a kernel file

mod headers;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{self, BzImage, Elf, KernelLoader};
use mm::layout::HOLE_START;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use crate::arch::memory_map::{MapEntry, MemoryKind};
use crate::host::files::open_regular;
use headers::Format;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// `xloadflags`: the kernel has the 64-bit entry point 0x200 bytes in (boot protocol 2.12).
const XLF_KERNEL_64: u16 = 1;
/// Offset of that entry point from where the protected-mode kernel was loaded.
const ENTRY_64: u64 = 0x200;
/// First version of the protocol with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;

/// Why there is no kernel to run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Neither of the formats we know.
    #[error("kernel {} is neither an x86-64 ELF file nor a bzImage", .0.display())]
    NotAKernel(PathBuf),
    /// A bzImage from before Linux 3.8, or a 32-bit one.
    #[error("kernel {} has no 64-bit entry point", .0.display())]
    No64BitEntry(PathBuf),
    /// It is broken, or does not fit in guest memory.
    #[error("cannot load kernel {}: {source}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: loader::Error,
    },
    /// Its headers lead the CPU, or it unpacks itself, to where no kernel can be.
    #[error(
        "kernel {} has entry point {rip:#x} and end {end:#x}: both must lie in memory between 1 \
         MiB and 3 GiB", path.display()
    )]
    Outside {
        /// The file.
        path: PathBuf,
        /// First instruction.
        rip: u64,
        /// First address that it leaves free while it starts.
        end: u64,
    },
    /// It would run out of memory before its first line of output.
    #[error(
        "kernel {} needs {needed_mib} MiB of memory to start, but the guest has {has_mib} MiB: \
         give it more", path.display()
    )]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// Minimum memory in MiB, without an initrd and the guest's workload.
        needed_mib: u64,
        /// MiB of low RAM.
        has_mib: u64,
    },
    /// No initrd may be empty: a kernel would ignore it in silence.
    #[error("initrd {} is empty", .0.display())]
    EmptyInitrd(PathBuf),
    /// Between the kernel and the end of low RAM there is too little room.
    #[error("initrd {} of {len} bytes does not fit in the {room} bytes of free low memory", path.display())]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// Room between the kernel and the end of low RAM.
        room: u64,
    },
}

/// Entry protocol of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
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
    pub entry: Entry,
    /// First address that it leaves free while it starts.
    end: u64,
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
    let format = headers::format(&mut file).map_err(read_error)?;
    let ram_end = low_ram_end(map);
    let check = |needed: u64| {
        if needed <= ram_end || needed > HOLE_START.0 {
            return Ok(());
        }
        let (needed_mib, has_mib) = (needed.div_ceil(MIB), ram_end / MIB);
        Err(KernelError::TooLittleMemory { path: path.to_owned(), needed_mib, has_mib })
    };
    // Before loading: the loaders only say that they cannot.
    let needed =
        format.map_or(Ok(0), |format| headers::needed(&file, format)).map_err(read_error)?;
    check(needed)?;
    let kernel = match format {
        None => return Err(KernelError::NotAKernel(path.to_owned())),
        Some(Format::Elf) => {
            let loaded =
                Elf::load(mem, None, &mut file, Some(layout::HIGH_RAM)).map_err(load_error)?;
            let entry = match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(rip) => Entry::Pvh { rip },
                _ => Entry::Linux64 { rip: loaded.kernel_load, header: None },
            };
            // The loader's end address ignores segments that are larger in the file than in memory.
            LoadedKernel { entry, end: loaded.kernel_end.max(needed) }
        }
        Some(Format::BzImage) => {
            let loaded =
                BzImage::load(mem, None, &mut file, Some(layout::HIGH_RAM)).map_err(load_error)?;
            let header = loaded
                .setup_header
                .filter(|h| h.version >= PROTOCOL_2_12 && h.xloadflags & XLF_KERNEL_64 != 0)
                .ok_or_else(|| KernelError::No64BitEntry(path.to_owned()))?;
            let rip = loaded.kernel_load.unchecked_add(ENTRY_64);
            // It unpacks itself to `pref_address` and needs `init_size` bytes from there.
            let unpacked = header.pref_address.saturating_add(u64::from(header.init_size));
            let entry = Entry::Linux64 { rip, header: Some(header) };
            LoadedKernel { entry, end: loaded.kernel_end.max(unpacked) }
        }
    };
    check(kernel.end)?;
    let (Entry::Pvh { rip } | Entry::Linux64 { rip, .. }) = kernel.entry;
    let ram = layout::HIGH_RAM.0..ram_end;
    if !ram.contains(&rip.0) || kernel.end > ram_end {
        return Err(KernelError::Outside { path: path.to_owned(), rip: rip.0, end: kernel.end });
    }
    Ok(kernel)
}

/// Loads the initrd at `path` as high in low RAM as `kernel` allows, but below `ceiling`: the
/// kernel reserves its CMA region only at the given address, and fails if that is occupied.
///
/// # Errors
///
/// Where the file is empty, cannot be read, or does not fit.
pub fn load_initrd<M: GuestMemoryBackend>(
    mem: &M,
    map: &[MapEntry],
    kernel: &LoadedKernel,
    path: &Path,
    ceiling: GuestAddress,
) -> Result<LoadedInitrd, KernelError> {
    let read_error = |source| KernelError::Read { what: "initrd", path: path.to_owned(), source };
    let mut file = open_regular(path).map_err(read_error)?;
    let len = file.metadata().map_err(read_error)?.len();
    if len == 0 {
        return Err(KernelError::EmptyInitrd(path.to_owned()));
    }
    let mut limit = low_ram_end(map).min(ceiling.0);
    if let Entry::Linux64 { header: Some(header), .. } = kernel.entry {
        limit = limit.min(u64::from(header.initrd_addr_max).saturating_add(1));
    }
    let floor = kernel.end.next_multiple_of(PAGE);
    let too_large = || KernelError::InitrdTooLarge {
        path: path.to_owned(),
        len,
        room: limit.saturating_sub(floor),
    };
    let start = limit.checked_sub(len).map(|s| s - s % PAGE).filter(|s| *s >= floor);
    let start = GuestAddress(start.ok_or_else(too_large)?);
    let len = u32::try_from(len).map_err(|_| too_large())?;
    mem.read_exact_volatile_from(start, &mut file, len as usize)
        .map_err(|error| read_error(io::Error::other(error)))?;
    Ok(LoadedInitrd { start, len })
}

/// Where the RAM that holds the kernel ends.
fn low_ram_end(map: &[MapEntry]) -> u64 {
    map.iter()
        .find(|e| e.kind == MemoryKind::Ram && e.start == layout::HIGH_RAM)
        .map_or(0, |e| e.start.0 + e.len)
}
