// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in a file that a user gives as a kernel or an initrd: told by its first bytes, in words
//! that help who gave the wrong one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `e_machine` of an x86-64 ELF file.
const EM_X86_64: u16 = 62;
/// `p_type` of the segment that names a dynamic loader: programs have it, kernels do not.
const PT_INTERP: u32 = 3;
/// Most segments of an ELF file that are looked at.
const MAX_SEGMENTS: u16 = 64;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContents {
    /// A 64-bit ELF file for x86-64 that is no ordinary program.
    Elf,
    /// A Linux image with a boot header for x86.
    BzImage,
    /// Nothing that can be booted: a noun phrase that says what instead, with advice where there
    /// is some.
    Other(String),
}

impl fmt::Display for FileContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "an x86-64 ELF file",
            Self::BzImage => "a bzImage",
            Self::Other(what) => what,
        })
    }
}

impl FileContents {
    /// Looks into `file`; leaves its position alone.
    ///
    /// # Errors
    ///
    /// What read(2) says.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut head = [0; 0x206];
        let length = read_up_to(file, &mut head, 0)?;
        if head.starts_with(b"\x7fELF") {
            return elf(file, &head, length);
        }
        // The real-mode kernel header (Linux Documentation/arch/x86/boot.rst).
        if &head[0x202..] == b"HdrS" {
            return Ok(Self::BzImage);
        }
        Ok(Self::Other(other(&head, length)))
    }
}

/// What begins in a way that is known, and what to do with it.
const KNOWN: [(usize, &[u8], &str); 14] = [
    (0, b"\x1f\x8b", "compressed by gzip (unpack it: gzip -d)"),
    (0, b"\xfd7zXZ\0", "compressed by xz (unpack it: xz -d)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd (unpack it: zstd -d)"),
    (0, b"BZh", "compressed by bzip2 (unpack it: bzip2 -d)"),
    (0, b"\x02\x21\x4c\x18", "compressed by lz4 (unpack it: lz4 -d)"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4 (unpack it: lz4 -d)"),
    (0, b"\x5d\0\0", "compressed by lzma (unpack it: xz --format=lzma -d)"),
    (0x38, b"ARM\x64", "a Linux image for ARM64, not for x86-64"),
    (0x38, b"RSC\x05", "a Linux image for RISC-V, not for x86-64"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"QFI\xfb", "a qcow2 disk image (it is for a drive)"),
    (0, b"070701", "a cpio archive (it is for the initrd)"),
    (0, b"MZ", "an EFI or Windows program without a Linux boot header"),
    (0, b"#!", "a script"),
];

fn other(head: &[u8], length: usize) -> String {
    if length == 0 {
        return "empty".into();
    }
    if head[..length].iter().all(|byte| *byte == 0) {
        return "a file that begins with zeroes only".into();
    }
    match KNOWN.iter().find(|(at, magic, _)| head[*at..].starts_with(magic)) {
        Some((_, _, what)) => (*what).into(),
        None => "neither an ELF vmlinux nor a bzImage".into(),
    }
}

/// Tells kernels from what else is an ELF file (`e_ident`, `e_type`, `e_machine`).
fn elf(file: &File, head: &[u8], length: usize) -> io::Result<FileContents> {
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let what = match (head[4], head[5], half(16), half(18)) {
        _ if length < 64 => "an ELF file that is cut off in its header".into(),
        (_, 2, ..) => "an ELF file for a big-endian machine, not for x86-64".into(),
        (1, _, _, machine) => format!("a 32-bit ELF file{}, not a 64-bit one", named(machine)),
        (_, _, _, machine) if machine != EM_X86_64 => {
            format!("an ELF file{}, not for x86-64", named(machine))
        }
        (_, _, 1, _) => "an object file or kernel module, which is not linked".into(),
        (_, _, 4, _) => "a core dump".into(),
        _ if has_loader(file, head)? => "a program that runs under Linux, not a kernel".into(),
        _ => return Ok(FileContents::Elf),
    };
    Ok(FileContents::Other(what))
}

/// Whose ELF file it is, by `e_machine`.
fn named(machine: u16) -> String {
    let name = match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        EM_X86_64 => "x86-64",
        183 => "ARM64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!(" for machine {other}"),
    };
    format!(" for {name}")
}

/// Whether a segment names a dynamic loader (`e_phoff`, `e_phentsize`, `e_phnum`).
fn has_loader(file: &File, head: &[u8]) -> io::Result<bool> {
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let table: [u8; 8] = std::array::from_fn(|at| head[32 + at]);
    let (table, size) = (u64::from_le_bytes(table), half(54));
    for number in 0..half(56).min(MAX_SEGMENTS) {
        let at = table.saturating_add(u64::from(number) * u64::from(size));
        let mut kind = [0; 4];
        if read_up_to(file, &mut kind, at)? == 4 && u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads at `offset` as much as is there, at most all of `into`.
fn read_up_to(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    // No file reaches as far as a signed offset.
    if offset > i64::MAX as u64 - into.len() as u64 {
        return Ok(0);
    }
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn of(bytes: &[u8]) -> FileContents {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        FileContents::of(&file).unwrap()
    }

    /// An ELF header with one segment of type `segment` behind it.
    fn elf(class: u8, order: u8, kind: u16, machine: u16, segment: u32) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        image[16..18].copy_from_slice(&kind.to_le_bytes());
        image[18..20].copy_from_slice(&machine.to_le_bytes());
        (image[32], image[54], image[56]) = (64, 56, 1);
        image[64..68].copy_from_slice(&segment.to_le_bytes());
        image
    }

    #[test]
    fn kernels_are_told_from_other_elf_files() {
        assert_eq!(of(&elf(2, 1, 2, 62, 1)), FileContents::Elf);
        for (image, says) in [
            (elf(2, 1, 3, 62, 3), "a program that runs under Linux"),
            (elf(2, 1, 2, 183, 1), "for ARM64, not for x86-64"),
            (elf(2, 1, 2, 4711, 1), "for machine 4711"),
            (elf(1, 1, 2, 3, 1), "32-bit ELF file for 32-bit x86"),
            (elf(2, 2, 2, 0x1600, 1), "big-endian"),
            (elf(2, 1, 1, 62, 1), "object file"),
            (elf(2, 1, 4, 62, 1), "core dump"),
            (elf(2, 1, 2, 62, 1)[..63].to_vec(), "cut off"),
        ] {
            let found = of(&image).to_string();
            assert!(found.contains(says), "{found} instead of {says}");
        }
        let program = File::open("/bin/ls").unwrap();
        assert!(FileContents::of(&program).unwrap().to_string().contains("a program"));
    }

    #[test]
    fn a_table_of_segments_beyond_any_file_is_no_error() {
        let mut image = elf(2, 1, 2, 62, 3);
        image[32..40].fill(0xff);
        image[54..58].fill(0xff);
        assert_eq!(of(&image), FileContents::Elf);
    }

    #[test]
    fn other_files_are_named() {
        let mut arm = [1; 100];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        for (bytes, says) in [
            (&b""[..], "empty"),
            (&[0; 4096], "zeroes"),
            (b"\x1f\x8b\x08", "gzip -d"),
            (b"\x28\xb5\x2f\xfdrest", "zstd -d"),
            (b"\xfd7zXZ\0", "xz -d"),
            (b"070701rest", "for the initrd"),
            (b"MZ", "without a Linux boot header"),
            (b"#!/bin/sh\n", "a script"),
            (b"hello", "neither an ELF vmlinux nor a bzImage"),
            (&arm, "for ARM64"),
        ] {
            let found = of(bytes).to_string();
            assert!(found.contains(says), "{found} instead of {says}");
        }
    }
}
