// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel images and initrds: ELF with and without a PVH note, bzImage, and any bytes.
//!
//! The oracle: what is loaded lies in guest RAM above 1 MiB, where boot structures end, and below the
//! end that the loader gives, byte for byte as in the file; the entry lies in it; the initrd lies above the kernel, below its
//! ceiling, unchanged; the boot structures can be written for all that was accepted.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::arch::handover::{Handover, write_start_info, write_zero_page};
use vmm::arch::kernel::{KernelEntry, load_initrd, load_kernel};
use vmm::arch::memory_map::memory_map;

const MIB: u64 = 1 << 20;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE: u32 = 4;
const LOAD: u32 = 1;

/// A number near one that matters.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Small(u16),
    Low { mib: u8, off: i16 },
    Hole(i16),
    High(i16),
    Last(u16),
    Any(u64),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Small(n) => n.into(),
            Self::Low { mib, off } => (u64::from(mib % 40) * MIB).saturating_add_signed(off.into()),
            Self::Hole(off) => 0xc000_0000_u64.saturating_add_signed(off.into()),
            Self::High(off) => (1_u64 << 32).saturating_add_signed(off.into()),
            Self::Last(off) => u64::MAX - u64::from(off),
            Self::Any(n) => n,
        }
    }
}

/// Something else than what a sound image has there; one time in sixteen, so that most images are
/// sound but for a few places.
#[derive(Debug, Clone, Copy)]
struct Rarely<T>(Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Rarely<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(if u.ratio(1, 16)? { Some(T::arbitrary(u)?) } else { None }))
    }
}

#[derive(Debug, Arbitrary)]
struct Segment {
    kind: Rarely<u32>,
    /// In RAM, unless it is elsewhere.
    page: u16,
    elsewhere: Rarely<Number>,
    offset: Rarely<Number>,
    size: Rarely<Number>,
    memory: Rarely<Number>,
    align: Rarely<Number>,
    body: Vec<u8>,
}

impl Segment {
    fn at(&self) -> u64 {
        let usual = MIB + (u64::from(self.page) << 6);
        self.elsewhere.0.map_or(usual, Number::value)
    }
}

/// A note: PVH's entry point unless it says something else.
#[derive(Debug, Arbitrary)]
struct Note {
    kind: Rarely<u32>,
    name: Rarely<Vec<u8>>,
    name_size: Rarely<u32>,
    desc_size: Rarely<u32>,
    entry: Number,
}

impl Note {
    fn bytes(&self) -> Vec<u8> {
        let name = self.name.0.clone().unwrap_or_else(|| b"Xen\0".to_vec());
        let name_size = self.name_size.0.unwrap_or(name.len() as u32);
        let mut bytes = Vec::new();
        for word in [name_size, self.desc_size.0.unwrap_or(8), self.kind.0.unwrap_or(18)] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(self.entry.value().to_le_bytes());
        bytes
    }
}

#[derive(Debug, Arbitrary)]
enum Image {
    Raw(Vec<u8>),
    Elf {
        entry: Rarely<Number>,
        kind: Rarely<u16>,
        table: Rarely<Number>,
        entry_size: Rarely<u16>,
        count: Rarely<u16>,
        segments: Vec<Segment>,
        notes: Vec<Note>,
        tail: u16,
    },
    BzImage {
        version: Rarely<u16>,
        flags: Rarely<u8>,
        xflags: Rarely<u16>,
        setup_sectors: u8,
        syssize: Rarely<u32>,
        code32: Rarely<u32>,
        preferred: Rarely<Number>,
        init_size: Rarely<u32>,
        initrd_max: Rarely<u32>,
        relocatable: u8,
        alignment: Rarely<u32>,
        body: Vec<u8>,
    },
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Image {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Elf { entry, kind, table, entry_size, count, segments, notes, tail } => {
                let total = (segments.len() + notes.len()).min(16);
                let mut file = vec![0; ELF_HEADER + total * PROGRAM_HEADER];
                let first = segments.first().map_or(0, Segment::at);
                put(&mut file, 0, b"\x7fELF\x02\x01\x01");
                put(&mut file, 16, &kind.0.unwrap_or(2).to_le_bytes());
                put(&mut file, 18, &62u16.to_le_bytes());
                put(&mut file, 24, &entry.0.map_or(first, Number::value).to_le_bytes());
                put(&mut file, 32, &table.0.map_or(64, Number::value).to_le_bytes());
                put(&mut file, 54, &entry_size.0.unwrap_or(56).to_le_bytes());
                put(&mut file, 56, &count.0.unwrap_or(total as u16).to_le_bytes());
                let all = segments.iter().map(|segment| {
                    (
                        segment.kind.0.unwrap_or(LOAD),
                        segment.at(),
                        Some(segment),
                        segment.body.clone(),
                    )
                });
                let notes = notes.iter().map(|note| (NOTE, 0, None, note.bytes()));
                for (index, (kind, at, segment, body)) in all.chain(notes).take(total).enumerate() {
                    let here = file.len() as u64;
                    let given = |pick: fn(&Segment) -> Rarely<Number>, usual: u64| {
                        segment.and_then(|s| pick(s).0).map_or(usual, Number::value).to_le_bytes()
                    };
                    let len = body.len() as u64;
                    let header = ELF_HEADER + index * PROGRAM_HEADER;
                    put(&mut file, header, &kind.to_le_bytes());
                    put(&mut file, header + 8, &given(|s| s.offset, here));
                    put(&mut file, header + 24, &at.to_le_bytes());
                    put(&mut file, header + 32, &given(|s| s.size, len));
                    put(&mut file, header + 40, &given(|s| s.memory, len));
                    put(&mut file, header + 48, &given(|s| s.align, 4));
                    file.extend(body);
                }
                file.resize(file.len() + usize::from(*tail), 0x5a);
                file
            }
            Self::BzImage {
                version,
                flags,
                xflags,
                setup_sectors,
                syssize,
                code32,
                preferred,
                init_size,
                initrd_max,
                relocatable,
                alignment,
                body,
            } => {
                let setup = (usize::from(setup_sectors % 8) + 1) * 512;
                let mut file = vec![0; setup.max(1024)];
                put(&mut file, 0x1f1, &[setup_sectors % 8]);
                put(&mut file, 0x1f4, &syssize.0.unwrap_or(body.len() as u32 / 16).to_le_bytes());
                put(&mut file, 0x1fe, &0xaa55u16.to_le_bytes());
                put(&mut file, 0x202, b"HdrS");
                put(&mut file, 0x206, &version.0.unwrap_or(0x20f).to_le_bytes());
                put(&mut file, 0x211, &[flags.0.unwrap_or(1)]);
                put(&mut file, 0x214, &code32.0.unwrap_or(0x10_0000).to_le_bytes());
                put(&mut file, 0x22c, &initrd_max.0.unwrap_or(0x7fff_ffff).to_le_bytes());
                put(&mut file, 0x230, &alignment.0.unwrap_or(0x20_0000).to_le_bytes());
                put(&mut file, 0x234, &[*relocatable]);
                put(&mut file, 0x236, &xflags.0.unwrap_or(1).to_le_bytes());
                let preferred = preferred.0.map_or(0x10_0000, Number::value);
                put(&mut file, 0x258, &preferred.to_le_bytes());
                put(&mut file, 0x260, &init_size.0.unwrap_or(0x10_0000).to_le_bytes());
                file.extend(body);
                file
            }
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    image: Image,
    /// Guest memory, in MiB.
    mib: u8,
    /// RAM above 4 GiB too.
    high: bool,
    initrd: Option<u32>,
    ceiling: Option<Number>,
}

/// Files in memory that each run rewrites.
static FILES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    ["kernel", "initrd"].map(|name| {
        let folder = PathBuf::from("/dev/shm");
        let folder = if folder.is_dir() { folder } else { std::env::temp_dir() };
        folder.join(format!("ballast-fuzz-{name}-{}", std::process::id()))
    })
});

/// Each segment that an accepted ELF file asks to load: its address and its bytes.
fn segments(file: &[u8]) -> Vec<(u64, &[u8])> {
    let number = |at: usize, len: usize| {
        file.get(at..at + len)
            .map_or(0, |bytes| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)))
    };
    let (table, count) = (number(32, 8) as usize, number(56, 2) as usize);
    (0..count)
        .map(|index| table + index * PROGRAM_HEADER)
        .filter(|&at| number(at, 4) == u64::from(LOAD))
        .map(|at| {
            let (from, len) = (number(at + 8, 8) as usize, number(at + 32, 8) as usize);
            // One without bytes may begin anywhere.
            (number(at + 24, 8), if len == 0 { &[][..] } else { &file[from..from + len] })
        })
        .collect()
}

fn check(input: &Input) {
    let low = u64::from(input.mib % 32 + 2) * MIB;
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if input.high {
        ranges.push((GuestAddress(1 << 32), 2 << 20));
    }
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("guest memory");
    let map = memory_map(&memory);
    let file = input.image.bytes();
    let [kernel_path, initrd_path] = &*FILES;
    fs::write(kernel_path, &file).expect("a file");
    let Ok(kernel) = load_kernel(&memory, &map, kernel_path) else { return };

    let ram = MIB..low;
    let (KernelEntry::Pvh { rip } | KernelEntry::Linux64 { rip, .. }) = kernel.entry;
    assert!(ram.contains(&rip.0), "entered at {rip:?}");
    assert!(kernel.end() <= low, "ends at {:#x} of {low:#x}", kernel.end());
    if file.starts_with(b"\x7fELF") {
        let loaded = segments(&file);
        for (index, &(at, bytes)) in loaded.iter().enumerate() {
            assert!(bytes.is_empty() || ram.contains(&at), "loaded at {at:#x}");
            // A later segment may lie over this one.
            let end = at + bytes.len() as u64;
            let covered = loaded[index + 1..]
                .iter()
                .any(|&(other, more)| other < end && at < other + more.len() as u64);
            let mut found = vec![0; bytes.len()];
            memory.read_slice(&mut found, GuestAddress(at)).expect("what was loaded is in RAM");
            assert!(covered || found == bytes, "segment {index} is not as in the file");
            assert!(end <= kernel.end(), "segment {index} lies beyond the end");
        }
    }

    let ceiling = GuestAddress(input.ceiling.map_or(u64::MAX, Number::value));
    let initrd = input.initrd.map(|len| {
        let bytes: Vec<u8> = (0..len % (3 << 20)).map(|n| (n % 251) as u8).collect();
        fs::write(initrd_path, &bytes).expect("a file");
        let loaded = load_initrd(&memory, &map, &kernel, initrd_path, ceiling).ok()?;
        let (start, end) = (loaded.start.0, loaded.start.0 + u64::from(loaded.len));
        assert!(start % 4096 == 0 && start >= kernel.end() && end <= low.min(ceiling.0));
        let mut found = vec![0; bytes.len()];
        memory.read_slice(&mut found, loaded.start).expect("the initrd is in RAM");
        assert!(found == bytes, "the initrd is not as in the file");
        Some(loaded)
    });
    let initrd = initrd.flatten();
    let handover = Handover { initrd, map: &map, rsdp: GuestAddress(0xe_0000), cmdline_len: 5 };
    match kernel.entry {
        KernelEntry::Pvh { .. } => write_start_info(&memory, &handover).expect("a start info"),
        KernelEntry::Linux64 { header, .. } => {
            write_zero_page(&memory, header, &handover).expect("a zero page");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) {
        check(&input);
    }
});
