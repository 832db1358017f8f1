// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::io::Write;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

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
    assert_eq!(kernel.entry, KernelEntry::Linux64 { rip, header: None });
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
    assert!(error.contains("needs 41 MiB of memory to start, but the guest has 16 MiB"), "{error}");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let mem = memory();
    for bytes in [&b""[..], b"MZ", &[0u8; 4096], b"\x7fELF"] {
        let file = file_of(bytes);
        let error = load_kernel(&mem, &memory_map(&mem), file.path()).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel { .. }), "{error}");
    }
    let program = load_kernel(&mem, &memory_map(&mem), Path::new("/bin/ls")).unwrap_err();
    assert!(program.to_string().starts_with("kernel /bin/ls is a program"), "{program}");
    let outside = file_of(&elf(1 << 40, b"kernel"));
    let error = load_kernel(&mem, &memory_map(&mem), outside.path()).unwrap_err();
    assert!(matches!(error, KernelError::Load { .. }), "{error}");
    let missing = load_kernel(&mem, &memory_map(&mem), Path::new("/nonexistent")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read kernel /nonexistent: "));
}

#[test]
fn a_kernel_that_is_cut_off_says_so() {
    let mem = memory();
    let mut image = elf(2 << 20, &[0; 1000]);
    image.truncate(500);
    let error = load_kernel(&mem, &memory_map(&mem), file_of(&image).path()).unwrap_err();
    assert!(matches!(error, KernelError::CutOff { has: 500, named: 1120, .. }), "{error}");
    let mut image = vec![0; 0x300];
    image[0x1f1] = 10; // setup_sects
    image[0x1f4..0x1f6].copy_from_slice(&100u16.to_le_bytes()); // syssize
    image[0x202..0x206].copy_from_slice(b"HdrS");
    let error = load_kernel(&mem, &memory_map(&mem), file_of(&image).path()).unwrap_err();
    let named = 11 * 512 + 99 * 16;
    assert!(matches!(error, KernelError::CutOff { named: n, .. } if n == named), "{error}");
}

#[test]
fn a_segment_below_one_mib_is_refused() {
    let mem = memory();
    let mut image = elf(2 << 20, b"kernel");
    image[64 + 24..64 + 32].copy_from_slice(&0x9000u64.to_le_bytes()); // p_paddr
    let error = load_kernel(&mem, &memory_map(&mem), file_of(&image).path()).unwrap_err();
    assert!(matches!(error, KernelError::TooLow { at: 0x9000, .. }), "{error}");
}

#[test]
fn the_end_is_that_of_the_highest_segment() {
    let mem = memory();
    // The first segment in the table lies above the second, and its file size exceeds its memory
    // size.
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
    for (at, entry) in [(2 << 20, 0), (2 << 20, 0x6000), (2 << 20, 16 << 20), (2 << 20, 1 << 40)] {
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
    let error = load_initrd(&mem, &memory_map(&mem), &kernel, large.path(), anywhere).unwrap_err();
    assert!(matches!(error, KernelError::InitrdTooLarge { .. }), "{error}");
    let error =
        load_initrd(&mem, &memory_map(&mem), &kernel, file_of(&[]).path(), anywhere).unwrap_err();
    assert!(matches!(error, KernelError::EmptyInitrd(_)), "{error}");
}
