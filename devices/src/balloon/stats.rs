// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory statistics reported by the guest. The host cannot verify them.

use std::time::Instant;

use zerocopy::FromBytes;

use super::protocol::{Stat, StatTag};

/// Most entries read of one buffer. Linux 6.12 sends 16, with our patches 19.
pub(super) const MAX_ENTRIES: usize = 256;

/// The last value that the guest sent of each figure; `None` where it never sent one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes swapped in since the guest started.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that had to read from a disk.
    pub major_faults: Option<u64>,
    /// Page faults of all kinds.
    pub minor_faults: Option<u64>,
    /// Bytes free.
    pub free_memory: Option<u64>,
    /// Bytes that the guest manages.
    pub total_memory: Option<u64>,
    /// Bytes that a new workload could have without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of page cache.
    pub disk_caches: Option<u64>,
    /// Huge pages allocated from the buddy allocator.
    pub hugetlb_allocations: Option<u64>,
    /// Failures of the same.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed by the OOM killer.
    pub oom_kill: Option<u64>,
    /// Allocations that stalled on reclaim.
    pub alloc_stall: Option<u64>,
    /// Bytes scanned by kswapd.
    pub async_scan: Option<u64>,
    /// Bytes scanned by allocations.
    pub direct_scan: Option<u64>,
    /// Bytes reclaimed by kswapd.
    pub async_reclaim: Option<u64>,
    /// Bytes reclaimed by allocations.
    pub direct_reclaim: Option<u64>,
    /// Bytes of all CMA regions.
    pub cma_total: Option<u64>,
    /// Unused bytes of them.
    pub cma_free: Option<u64>,
    /// Bytes of them in contiguous use by devices.
    pub cma_allocated: Option<u64>,
    /// When they came.
    pub updated: Option<Instant>,
}

impl Statistics {
    /// Reads the entries of one buffer; returns the number of unknown tags.
    ///
    /// A truncated last entry is ignored.
    pub fn update(&mut self, buffer: &[u8]) -> u64 {
        let mut unknown = 0;
        for raw in buffer.chunks_exact(size_of::<Stat>()).take(MAX_ENTRIES) {
            let Ok(stat) = Stat::read_from_bytes(raw) else { continue };
            match self.field(stat.tag.get().into()) {
                Some(field) => *field = Some(stat.value.get()),
                None => unknown += 1,
            }
        }
        self.updated = Some(Instant::now());
        unknown
    }

    fn field(&mut self, tag: StatTag) -> Option<&mut Option<u64>> {
        Some(match tag {
            StatTag::SwapIn => &mut self.swap_in,
            StatTag::SwapOut => &mut self.swap_out,
            StatTag::MajorFaults => &mut self.major_faults,
            StatTag::MinorFaults => &mut self.minor_faults,
            StatTag::FreeMemory => &mut self.free_memory,
            StatTag::TotalMemory => &mut self.total_memory,
            StatTag::AvailableMemory => &mut self.available_memory,
            StatTag::DiskCaches => &mut self.disk_caches,
            StatTag::HugetlbAllocations => &mut self.hugetlb_allocations,
            StatTag::HugetlbFailures => &mut self.hugetlb_failures,
            StatTag::OomKill => &mut self.oom_kill,
            StatTag::AllocStall => &mut self.alloc_stall,
            StatTag::AsyncScan => &mut self.async_scan,
            StatTag::DirectScan => &mut self.direct_scan,
            StatTag::AsyncReclaim => &mut self.async_reclaim,
            StatTag::DirectReclaim => &mut self.direct_reclaim,
            StatTag::CmaTotal => &mut self.cma_total,
            StatTag::CmaFree => &mut self.cma_free,
            StatTag::CmaAllocated => &mut self.cma_allocated,
            StatTag::Unsupported(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()
    }

    #[test]
    fn every_tag_has_its_field() {
        let tags = (0..16).chain(0xb000..0xb003);
        let buffer: Vec<u8> = tags.flat_map(|tag| entry(tag, 100 + u64::from(tag))).collect();
        let mut stats = Statistics::default();
        assert_eq!(stats.update(&buffer), 0);
        let expected = Statistics {
            swap_in: Some(100),
            swap_out: Some(101),
            major_faults: Some(102),
            minor_faults: Some(103),
            free_memory: Some(104),
            total_memory: Some(105),
            available_memory: Some(106),
            disk_caches: Some(107),
            hugetlb_allocations: Some(108),
            hugetlb_failures: Some(109),
            oom_kill: Some(110),
            alloc_stall: Some(111),
            async_scan: Some(112),
            direct_scan: Some(113),
            async_reclaim: Some(114),
            direct_reclaim: Some(115),
            cma_total: Some(100 + 0xb000),
            cma_free: Some(100 + 0xb001),
            cma_allocated: Some(100 + 0xb002),
            updated: stats.updated,
        };
        assert_eq!(stats, expected);
        assert!(stats.updated.is_some());
    }

    #[test]
    fn unknown_tags_are_counted_and_a_cut_entry_is_ignored() {
        let mut buffer = [entry(16, 1), entry(0xb003, 1), entry(4, 7)].concat();
        buffer.extend_from_slice(&entry(5, 9)[..9]);
        let mut stats = Statistics::default();
        assert_eq!(stats.update(&buffer), 2);
        assert_eq!((stats.free_memory, stats.total_memory), (Some(7), None));
    }

    #[test]
    fn a_buffer_is_read_up_to_the_limit() {
        let mut buffer = entry(200, 0).repeat(MAX_ENTRIES);
        buffer.extend(entry(4, 7));
        let mut stats = Statistics::default();
        assert_eq!(stats.update(&buffer), MAX_ENTRIES as u64);
        assert_eq!(stats.free_memory, None);
    }
}
