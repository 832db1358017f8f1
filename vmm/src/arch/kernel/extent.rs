// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a kernel reaches in its file and in memory, read from its headers before it is loaded: the
//! loaders only say that they cannot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The formats of kernels.
pub(super) enum Format {
    /// 64-bit ELF.
    Elf,
    /// Linux image with a boot header.
    BzImage,
}

/// How far a kernel reaches, by its headers; 0 where they are not there.
#[derive(Default)]
pub(super) struct KernelExtent {
    /// First byte of the file that it does not need.
    pub(super) in_file: u64,
    /// First address that it does not need while it starts.
    pub(super) in_memory: u64,
    /// Lowest address that something is loaded to, if anything is.
    pub(super) lowest: Option<u64>,
}

/// Reads how far the kernel in `file` reaches.
pub(super) fn extent(file: &File, format: &Format) -> io::Result<KernelExtent> {
    match format {
        Format::Elf => elf_extent(file),
        Format::BzImage => {
            // `setup_sects` and `syssize`, in units of 512 and 16 bytes (boot protocol 2.04). The
            // last unit need not be full.
            let mut fields = [0; 7];
            read_or_zero(file, &mut fields, 0x1f1)?;
            let setup = if fields[0] == 0 { 4 } else { u64::from(fields[0]) };
            let paragraphs = little_endian(&fields[3..]).saturating_sub(1);
            let in_file = (setup + 1) * 512 + paragraphs * 16;
            // `pref_address` and `init_size` (boot protocol 2.10).
            let mut fields = [0; 12];
            read_or_zero(file, &mut fields, 0x258)?;
            let (address, size) = fields.split_at(8);
            let in_memory = little_endian(address).saturating_add(little_endian(size));
            Ok(KernelExtent { in_file, in_memory, lowest: None })
        }
    }
}

/// Ends of the segments that are loaded (ELF-64: `e_phoff`, `e_phentsize`, `e_phnum`, then `p_type`,
/// `p_offset`, `p_paddr`, `p_filesz` and `p_memsz` of each). In memory the larger size counts: the
/// loader copies all bytes of the file.
fn elf_extent(file: &File) -> io::Result<KernelExtent> {
    const PT_LOAD: u64 = 1;
    let mut head = [0; 64];
    read_or_zero(file, &mut head, 0)?;
    let (at, size) = (little_endian(&head[32..40]), little_endian(&head[54..56]));
    let mut extent = KernelExtent::default();
    for number in 0..little_endian(&head[56..58]) {
        let mut segment = [0; 56];
        read_or_zero(file, &mut segment, at.saturating_add(number * size))?;
        if little_endian(&segment[..4]) == PT_LOAD {
            let (offset, start) = (little_endian(&segment[8..16]), little_endian(&segment[24..32]));
            let bytes = little_endian(&segment[32..40]);
            let memory = bytes.max(little_endian(&segment[40..48]));
            if bytes > 0 {
                extent.lowest = Some(extent.lowest.map_or(start, |lowest| lowest.min(start)));
            }
            extent.in_file = extent.in_file.max(offset.saturating_add(bytes));
            extent.in_memory = extent.in_memory.max(start.saturating_add(memory));
        }
    }
    Ok(extent)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Reads at `offset`; bytes beyond the end of the file stay zero.
fn read_or_zero(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(into, offset) {
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}
