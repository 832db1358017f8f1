// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Headers of a kernel file, read before loading: its format and the memory that it needs.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;

/// `e_machine` of an x86-64 ELF file.
const EM_X86_64: u16 = 62;

/// The two formats of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Elf,
    BzImage,
}

/// The format of `file`; `None` if it is not a supported kernel. Rewinds the file.
pub(super) fn format(file: &mut File) -> io::Result<Option<Format>> {
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
pub(super) fn needed(file: &File, format: Format) -> io::Result<u64> {
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

/// Reads at `offset`; bytes beyond the end of the file stay zero.
fn read_or_zero(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(into, offset) {
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}
