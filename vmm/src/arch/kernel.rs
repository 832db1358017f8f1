// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel (ELF or bzImage, told apart by their magic) and an initrd into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{self, BzImage, Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use crate::arch::memory_map::{MemoryKind, memory_map};
use crate::host::files::open_regular;

const PAGE: u64 = 4096;
/// `xloadflags`: the kernel has the 64-bit entry point 0x200 bytes in (boot protocol 2.12).
const XLF_KERNEL_64: u16 = 1;
/// Offset of that entry point from where the protected-mode kernel was loaded.
const ENTRY_64: u64 = 0x200;
/// First version of the protocol with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// `e_machine` of an x86-64 ELF file.
const EM_X86_64: u16 = 62;

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
    #[error("kernel {} cannot be loaded: {source}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: loader::Error,
    },
    /// It would run out of memory before its first line of output.
    #[error("kernel {} needs memory up to {needed:#x}, but RAM ends at {ram_end:#x}", path.display())]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// First address that it does not need.
        needed: u64,
        /// First address after low RAM.
        ram_end: u64,
    },
    /// No initrd may be empty: a kernel would ignore it in silence.
    #[error("initrd {} is empty", .0.display())]
    EmptyInitrd(PathBuf),
    /// Between the kernel and the end of low RAM there is too little room.
    #[error("initrd {} of {len} bytes does not fit in the {room} bytes of low memory left", path.display())]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// Room between the kernel and the end of low RAM.
        room: u64,
    },
}

/// How the kernel wants to be entered.
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
pub fn load_kernel<M: GuestMemoryBackend>(
    mem: &M,
    path: &Path,
) -> Result<LoadedKernel, KernelError> {
    let read_error = |source| KernelError::Read { what: "kernel", path: path.to_owned(), source };
    let load_error = |source| KernelError::Load { path: path.to_owned(), source };
    let mut file = open_regular(path).map_err(read_error)?;
    let kernel = match format(&mut file).map_err(read_error)? {
        None => return Err(KernelError::NotAKernel(path.to_owned())),
        Some(Format::Elf) => {
            let loaded =
                Elf::load(mem, None, &mut file, Some(layout::HIGH_RAM)).map_err(load_error)?;
            let entry = match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(rip) => Entry::Pvh { rip },
                _ => Entry::Linux64 { rip: loaded.kernel_load, header: None },
            };
            LoadedKernel { entry, end: loaded.kernel_end }
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
    let ram_end = low_ram_end(mem);
    if kernel.end > ram_end {
        return Err(KernelError::TooLittleMemory {
            path: path.to_owned(),
            needed: kernel.end,
            ram_end,
        });
    }
    Ok(kernel)
}

/// Loads the initrd at `path` as high in low RAM as `kernel` allows, but below `ceiling`: the kernel
/// reserves its CMA region where it is told to, or not at all if something lies there.
pub fn load_initrd<M: GuestMemoryBackend>(
    mem: &M,
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
    let mut limit = low_ram_end(mem).min(ceiling.0);
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

enum Format {
    Elf,
    BzImage,
}

fn format(file: &mut File) -> io::Result<Option<Format>> {
    // The bzImage magic "HdrS" is at 0x202; `e_machine` of an ELF file at 18.
    let mut head = [0u8; 0x206];
    let mut filled = 0;
    while filled < head.len() {
        match file.read(&mut head[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    file.rewind()?;
    Ok(if &head[..4] == b"\x7fELF" {
        (u16::from_le_bytes([head[18], head[19]]) == EM_X86_64).then_some(Format::Elf)
    } else {
        (&head[0x202..] == b"HdrS").then_some(Format::BzImage)
    })
}

/// Where the RAM that holds the kernel ends.
fn low_ram_end<M: GuestMemoryBackend>(mem: &M) -> u64 {
    memory_map(mem)
        .iter()
        .find(|e| e.kind == MemoryKind::Ram && e.start == layout::HIGH_RAM)
        .map_or(0, |e| e.start.0 + e.len)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A minimal x86-64 ELF file whose one segment is loaded at `paddr`.
    fn elf(paddr: u64, body: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 64 + 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[6] = 1;
        image[18] = 62;
        image[24..32].copy_from_slice(&paddr.to_le_bytes()); // e_entry
        image[32] = 64; // e_phoff
        image[54] = 56; // e_phentsize
        image[56] = 1; // e_phnum
        let phdr = &mut image[64..];
        phdr[0] = 1; // PT_LOAD
        phdr[8] = 120; // p_offset
        phdr[24..32].copy_from_slice(&paddr.to_le_bytes()); // p_paddr
        phdr[32..40].copy_from_slice(&(body.len() as u64).to_le_bytes()); // p_filesz
        phdr[40..48].copy_from_slice(&(body.len() as u64).to_le_bytes()); // p_memsz
        image.extend_from_slice(body);
        image
    }

    #[test]
    fn elf_is_loaded_where_it_says() {
        let (mem, file) = (memory(), file_of(&elf(2 << 20, b"kernel")));
        let kernel = load_kernel(&mem, file.path()).unwrap();
        let rip = GuestAddress(2 << 20);
        assert_eq!(kernel.entry, Entry::Linux64 { rip, header: None });
        let mut found = [0; 6];
        mem.read_slice(&mut found, rip).unwrap();
        assert_eq!(&found, b"kernel");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mem = memory();
        for bytes in [&b""[..], b"MZ", &[0u8; 4096], b"\x7fELF"] {
            let file = file_of(bytes);
            let error = load_kernel(&mem, file.path()).unwrap_err();
            assert!(matches!(error, KernelError::NotAKernel(_)), "{error}");
        }
        let outside = file_of(&elf(1 << 40, b"kernel"));
        let error = load_kernel(&mem, outside.path()).unwrap_err();
        assert!(matches!(error, KernelError::Load { .. }), "{error}");
        let missing = load_kernel(&mem, Path::new("/nonexistent")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read kernel /nonexistent: "));
    }

    #[test]
    fn initrd_lies_at_the_top_and_must_fit() {
        let (mem, kernel) = (memory(), file_of(&elf(2 << 20, b"kernel")));
        let kernel = load_kernel(&mem, kernel.path()).unwrap();
        let anywhere = GuestAddress(u64::MAX);
        let small = file_of(&[7; 5000]);
        let initrd = load_initrd(&mem, &kernel, small.path(), anywhere).unwrap();
        assert_eq!(initrd, LoadedInitrd { start: GuestAddress((16 << 20) - 8192), len: 5000 });
        let initrd = load_initrd(&mem, &kernel, small.path(), GuestAddress(12 << 20)).unwrap();
        assert_eq!(initrd, LoadedInitrd { start: GuestAddress((12 << 20) - 8192), len: 5000 });
        let large = file_of(&[]);
        large.as_file().set_len(15 << 20).unwrap();
        let error = load_initrd(&mem, &kernel, large.path(), anywhere).unwrap_err();
        assert!(matches!(error, KernelError::InitrdTooLarge { .. }), "{error}");
        let error = load_initrd(&mem, &kernel, file_of(&[]).path(), anywhere).unwrap_err();
        assert!(matches!(error, KernelError::EmptyInitrd(_)), "{error}");
    }
}
