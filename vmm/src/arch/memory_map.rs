// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory map for the kernel, with e820 types in both boot protocols.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::layout;

/// The type of a memory range (ACPI 6.5, table 15.4; the PVH boot protocol has the same numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// For the kernel to use.
    Ram = 1,
    /// Not for the kernel to use.
    Reserved = 2,
}

/// One stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub start: GuestAddress,
    /// Size in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// The map of `mem`: its RAM, without the PC's reserved range from 639 KiB to 1 MiB, which holds
/// the ACPI tables.
pub fn memory_map<M: GuestMemoryBackend>(mem: &M) -> Vec<MapEntry> {
    let mut map = Vec::with_capacity(mem.num_regions() + 2);
    for region in mem.iter() {
        let start = region.start_addr().0;
        let end = start.saturating_add(region.len());
        if start == 0 && end > layout::HIGH_RAM.0 {
            map.push(entry(0, layout::LOW_RAM_END.0, MemoryKind::Ram));
            map.push(entry(layout::LOW_RAM_END.0, layout::HIGH_RAM.0, MemoryKind::Reserved));
            map.push(entry(layout::HIGH_RAM.0, end, MemoryKind::Ram));
        } else {
            map.push(entry(start, end, MemoryKind::Ram));
        }
    }
    map
}

fn entry(start: u64, end: u64, kind: MemoryKind) -> MapEntry {
    MapEntry { start: GuestAddress(start), len: end - start, kind }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn map_of(ranges: &[(u64, usize)]) -> Vec<MapEntry> {
        let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
        memory_map(&GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn covers_ram_without_gap_or_overlap() {
        for ranges in [vec![(0, 2 << 20)], vec![(0, 3 << 30), (4 << 30, 2 << 30)]] {
            let map = map_of(&ranges);
            let total: u64 = map.iter().map(|e| e.len).sum();
            assert_eq!(total, ranges.iter().map(|r| r.1 as u64).sum::<u64>());
            for pair in map.windows(2) {
                assert!(pair[0].start.0 + pair[0].len <= pair[1].start.0);
            }
        }
    }

    #[test]
    fn tables_lie_where_the_kernel_will_not_allocate() {
        let map = map_of(&[(0, 128 << 20)]);
        let holder = map
            .iter()
            .find(|e| (e.start.0..e.start.0 + e.len).contains(&layout::ACPI_START.0))
            .unwrap();
        assert_eq!(holder.kind, MemoryKind::Reserved);
        assert!(holder.start.0 + holder.len >= layout::HIGH_RAM.0);
    }
}
