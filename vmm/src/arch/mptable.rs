// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MP table (Intel MultiProcessor Specification 1.4): CPUs and interrupt lines for a kernel
//! that does not use ACPI tables.

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryError};

use super::layout;

/// Entry kinds (MP 1.4, table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (MP 1.4, table 4-10).
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;

/// Processor flags: usable, and the one that boots.
const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOTS: u8 = 1 << 1;
/// Versions of KVM's local APIC and IOAPIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// A processor of family 6, with FPU and APIC. Kernels ask CPUID instead.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 | 1 << 9;
/// Every local APIC.
const ALL: u8 = 0xff;
/// The one bus.
const ISA: u8 = 0;
/// Size of the table's header.
const HEADER: usize = 44;
/// Size of the pointer structure, in units of 16 bytes.
const POINTER_PARAGRAPHS: u8 = 1;
/// Revision 1.4.
const REVISION: u8 = 4;

/// Writes the table for `cpus` vCPUs, with APIC ids from 0, where kernels look for it.
///
/// # Errors
///
/// Where guest memory ends below 1 MiB.
pub fn write<M: GuestMemoryBackend>(mem: &M, cpus: u8) -> Result<(), GuestMemoryError> {
    let pointer = layout::MP_TABLE;
    let table_at = pointer.0 + 16;
    let mut structure = Vec::with_capacity(16);
    structure.extend(b"_MP_");
    // In the first MiB by the machine's layout.
    structure.extend((table_at as u32).to_le_bytes());
    structure.extend([POINTER_PARAGRAPHS, REVISION, 0, 0, 0, 0, 0, 0]);
    structure[10] = checksum(&structure);
    mem.write_slice(&structure, pointer)?;
    mem.write_slice(&table(cpus), vm_memory::GuestAddress(table_at))
}

fn table(cpus: u8) -> Vec<u8> {
    // An id that no CPU has.
    let io_apic = cpus;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for cpu in 0..cpus {
        let flags = CPU_ENABLED | if cpu == 0 { CPU_BOOTS } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, cpu, LOCAL_APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = layout::IOAPIC.to_le_bytes();
    add(&[IO_APIC, io_apic, IO_APIC_VERSION, 1, a, b, c, d]);
    // Flags 0: polarity and trigger are the bus's, and ISA's are those of an edge. The line's
    // number fits, as an IOAPIC has 24.
    for line in 0..=layout::IRQ_LAST as u8 {
        add(&[IO_INTERRUPT, TYPE_INT, 0, 0, ISA, line, io_apic, line]);
    }
    add(&[LOCAL_INTERRUPT, TYPE_EXTINT, 0, 0, ISA, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, TYPE_NMI, 0, 0, ISA, 0, ALL, 1]);

    let mut table = Vec::with_capacity(HEADER + entries.len());
    table.extend(b"PCMP");
    // 254 processors of 20 bytes and a few more entries: far below 64 KiB.
    table.extend(((HEADER + entries.len()) as u16).to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"BALLAST BALLAST VM  ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The checksum: makes all bytes sum to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    /// The entries of a table, by kind.
    fn parse(table: &[u8]) -> Vec<(u8, &[u8])> {
        let mut rest = &table[HEADER..];
        let mut entries = Vec::new();
        while let Some(&kind) = rest.first() {
            let (entry, after) = rest.split_at(if kind == PROCESSOR { 20 } else { 8 });
            entries.push((kind, entry));
            rest = after;
        }
        entries
    }

    #[test]
    fn every_cpu_and_line_is_in_it() {
        for cpus in [1, 2, 254] {
            let table = table(cpus);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let entries = parse(&table);
            assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries.len());
            let ids: Vec<u8> =
                entries.iter().filter(|(kind, _)| *kind == PROCESSOR).map(|(_, e)| e[1]).collect();
            assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
            let lines = entries.iter().filter(|(kind, _)| *kind == IO_INTERRUPT);
            assert!(lines.map(|(_, e)| (e[5], e[7])).eq((0..24).map(|line| (line, line))));
        }
    }

    #[test]
    fn kernels_find_it_from_its_pointer() {
        let mem: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&mem, 254).unwrap();
        let mut pointer = [0; 16];
        mem.read_slice(&mut pointer, layout::MP_TABLE).unwrap();
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(pointer.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let at = u64::from(u32::from_le_bytes([pointer[4], pointer[5], pointer[6], pointer[7]]));
        let mut expected = vec![0; table(254).len()];
        mem.read_slice(&mut expected, GuestAddress(at)).unwrap();
        assert_eq!(expected, table(254));
        assert!(at + expected.len() as u64 <= layout::RESET_STUB.0);
    }
}
