// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel (ELF or bzImage, told apart by their magic) and an initrd into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{self, BzImage, Elf, KernelLoader};
use mm::layout::HOLE_START;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use crate::arch::memory_map::{MapEntry, MemoryKind};
use crate::host::files::open_regular;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
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
    /// Its headers lead the CPU, or it unpacks itself, to where no kernel can be.
    #[error(
        "kernel {} is to be entered at {rip:#x} and to end at {end:#x}: that is not in memory from \
         1 MiB to its end, or to 3 GiB", path.display()
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
        "kernel {} needs {needed_mib} MiB of memory to start, and the guest has {has_mib}: give it \
         more", path.display()
    )]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// MiB that it needs at least; an initrd and the work to do come on top.
        needed_mib: u64,
        /// MiB of low RAM.
        has_mib: u64,
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
    let format = format(&mut file).map_err(read_error)?;
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
        format.as_ref().map_or(Ok(0), |format| needed(&file, format)).map_err(read_error)?;
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
            // The loader's end leaves out what a segment has more in the file than in memory.
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

/// Loads the initrd at `path` as high in low RAM as `kernel` allows, but below `ceiling`: the kernel
/// reserves its CMA region where it is told to, or not at all if something lies there.
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

/// First address that the kernel in `file` does not need while it starts, by its headers; 0 where
/// they are not there.
fn needed(file: &File, format: &Format) -> io::Result<u64> {
    match format {
        Format::Elf => elf_end(file),
        Format::BzImage => {
            // `pref_address` and `init_size` (boot protocol 2.10).
            let mut fields = [0; 12];
            read_or_zero(file, &mut fields, 0x258)?;
            let (address, size) = fields.split_at(8);
            Ok(little_endian(address).saturating_add(little_endian(size)))
        }
    }
}

/// End of the highest segment that is loaded (ELF-64: `e_phoff`, `e_phentsize`, `e_phnum`, then
/// `p_type`, `p_paddr`, `p_filesz` and `p_memsz` of each). The larger size counts: the loader copies
/// all bytes of the file.
fn elf_end(file: &File) -> io::Result<u64> {
    const PT_LOAD: u64 = 1;
    let mut head = [0; 64];
    read_or_zero(file, &mut head, 0)?;
    let (at, size) = (little_endian(&head[32..40]), little_endian(&head[54..56]));
    let mut end = 0;
    for number in 0..little_endian(&head[56..58]) {
        let mut segment = [0; 56];
        read_or_zero(file, &mut segment, at.saturating_add(number * size))?;
        if little_endian(&segment[..4]) == PT_LOAD {
            let start = little_endian(&segment[24..32]);
            let len = little_endian(&segment[32..40]).max(little_endian(&segment[40..48]));
            end = end.max(start.saturating_add(len));
        }
    }
    Ok(end)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Reads at `offset`; what is beyond the file's end stays zero.
fn read_or_zero(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(into, offset) {
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}

/// Where the RAM that holds the kernel ends.
fn low_ram_end(map: &[MapEntry]) -> u64 {
    map.iter()
        .find(|e| e.kind == MemoryKind::Ram && e.start == layout::HIGH_RAM)
        .map_or(0, |e| e.start.0 + e.len)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::arch::memory_map::memory_map;

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
        let kernel = load_kernel(&mem, &memory_map(&mem), file.path()).unwrap();
        let rip = GuestAddress(2 << 20);
        assert_eq!(kernel.entry, Entry::Linux64 { rip, header: None });
        let mut found = [0; 6];
        mem.read_slice(&mut found, rip).unwrap();
        assert_eq!(&found, b"kernel");
    }

    #[test]
    fn a_kernel_larger_than_memory_says_how_much_it_needs() {
        let mem = memory();
        let file = file_of(&elf(40 << 20, b"kernel"));
        let map = memory_map(&mem);
        let error = load_kernel(&mem, &map, file.path()).unwrap_err().to_string();
        assert!(error.contains("needs 41 MiB of memory to start, and the guest has 16"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mem = memory();
        for bytes in [&b""[..], b"MZ", &[0u8; 4096], b"\x7fELF"] {
            let file = file_of(bytes);
            let error = load_kernel(&mem, &memory_map(&mem), file.path()).unwrap_err();
            assert!(matches!(error, KernelError::NotAKernel(_)), "{error}");
        }
        let outside = file_of(&elf(1 << 40, b"kernel"));
        let error = load_kernel(&mem, &memory_map(&mem), outside.path()).unwrap_err();
        assert!(matches!(error, KernelError::Load { .. }), "{error}");
        let missing = load_kernel(&mem, &memory_map(&mem), Path::new("/nonexistent")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read kernel /nonexistent: "));
    }

    #[test]
    fn the_end_is_that_of_the_highest_segment() {
        let mem = memory();
        // The first segment of the table lies above the second, and holds more than it says.
        let mut image = elf(6 << 20, b"");
        image[56] = 2; // e_phnum
        let table = image.len() as u64;
        image[32..40].copy_from_slice(&table.to_le_bytes()); // e_phoff
        for (at, in_file, in_memory) in [(6u64 << 20, 5000u64, 10u64), (2 << 20, 10, 10)] {
            let mut segment = [0; 56];
            segment[0] = 1;
            segment[24..32].copy_from_slice(&at.to_le_bytes());
            segment[32..40].copy_from_slice(&in_file.to_le_bytes());
            segment[40..48].copy_from_slice(&in_memory.to_le_bytes());
            image.extend_from_slice(&segment);
        }
        image.resize(8192, 0);
        let kernel = load_kernel(&mem, &memory_map(&mem), file_of(&image).path()).unwrap();
        assert_eq!(kernel.end(), (6 << 20) + 5000);
    }

    #[test]
    fn an_entry_outside_memory_is_refused() {
        let mem = memory();
        for (at, entry) in
            [(2 << 20, 0), (2 << 20, 0x6000), (2 << 20, 16 << 20), (2 << 20, 1 << 40)]
        {
            let mut image = elf(at, b"kernel");
            image[24..32].copy_from_slice(&u64::to_le_bytes(entry));
            let error = load_kernel(&mem, &memory_map(&mem), file_of(&image).path()).unwrap_err();
            let refused = matches!(error, KernelError::Outside { .. } | KernelError::Load { .. });
            assert!(refused, "{entry:#x}: {error}");
        }
    }

    #[test]
    fn initrd_lies_at_the_top_and_must_fit() {
        let (mem, kernel) = (memory(), file_of(&elf(2 << 20, b"kernel")));
        let kernel = load_kernel(&mem, &memory_map(&mem), kernel.path()).unwrap();
        let anywhere = GuestAddress(u64::MAX);
        let small = file_of(&[7; 5000]);
        let initrd = load_initrd(&mem, &memory_map(&mem), &kernel, small.path(), anywhere).unwrap();
        assert_eq!(initrd, LoadedInitrd { start: GuestAddress((16 << 20) - 8192), len: 5000 });
        let initrd =
            load_initrd(&mem, &memory_map(&mem), &kernel, small.path(), GuestAddress(12 << 20))
                .unwrap();
        assert_eq!(initrd, LoadedInitrd { start: GuestAddress((12 << 20) - 8192), len: 5000 });
        let large = file_of(&[]);
        large.as_file().set_len(15 << 20).unwrap();
        let error =
            load_initrd(&mem, &memory_map(&mem), &kernel, large.path(), anywhere).unwrap_err();
        assert!(matches!(error, KernelError::InitrdTooLarge { .. }), "{error}");
        let error = load_initrd(&mem, &memory_map(&mem), &kernel, file_of(&[]).path(), anywhere)
            .unwrap_err();
        assert!(matches!(error, KernelError::EmptyInitrd(_)), "{error}");
    }
}
