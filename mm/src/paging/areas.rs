// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocks of guest RAM, numbered densely, and where each lies in guest and host.

use crate::guest_ram::GuestRam;
use crate::units::{BLOCK_BYTES, BlockId, GuestRange, HostRange, PAGES_PER_BLOCK, Pfn, usize_from};

/// A stretch of RAM in whole blocks.
#[derive(Clone, Copy, Debug)]
struct RamArea {
    first_block: BlockId,
    host: HostRange,
    /// Number of its first block.
    first: usize,
}

impl RamArea {
    fn blocks(&self) -> usize {
        self.host.len() / BLOCK_BYTES
    }
}

/// All RAM that is paged. Pages outside whole blocks, at the ends of a region, never are.
#[derive(Clone, Debug, Default)]
pub(super) struct Areas {
    /// Ascending, in the guest and by number.
    areas: Vec<RamArea>,
    blocks: usize,
}

impl Areas {
    /// The whole blocks of `ram`.
    pub(super) fn of(ram: &GuestRam) -> Self {
        let mut this = Self::default();
        for region in ram.regions() {
            let mut blocks = region.guest().whole_blocks();
            let Some(first_block) = blocks.next() else { continue };
            let count = 1 + blocks.count();
            let skipped = Pfn(first_block.0 * PAGES_PER_BLOCK)
                .checked_offset_from(region.guest().start())
                .map(|pages| usize_from(pages.bytes().0));
            let host = skipped.and_then(|skip| region.host().slice(skip, count * BLOCK_BYTES));
            // A region whose mapping is not aligned as the guest's addresses are has no blocks.
            let Some(host) = host.filter(|h| h.addr().is_multiple_of(BLOCK_BYTES)) else {
                continue;
            };
            this.areas.push(RamArea { first_block, host, first: this.blocks });
            this.blocks += count;
        }
        this
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where block `index` lies in this process.
    ///
    /// # Panics
    /// If there is no such block.
    pub(super) fn host(&self, index: usize) -> HostRange {
        let area = self.area_of(index);
        let offset = (index - area.first) * BLOCK_BYTES;
        area.host.slice(offset, BLOCK_BYTES).expect("the block is in its area")
    }

    /// Which of the guest's blocks has number `index`.
    ///
    /// # Panics
    /// If there is no such block.
    pub(super) fn block(&self, index: usize) -> BlockId {
        let area = self.area_of(index);
        BlockId(area.first_block.0 + (index - area.first) as u64)
    }

    /// The number of the guest's block.
    pub(super) fn index(&self, block: BlockId) -> Option<usize> {
        self.areas.iter().find_map(|area| {
            let nth = usize_from(block.0.checked_sub(area.first_block.0)?);
            (nth < area.blocks()).then_some(area.first + nth)
        })
    }

    /// The number of the block that `addr` of this process lies in.
    pub(super) fn index_of_addr(&self, addr: usize) -> Option<usize> {
        self.areas.iter().find_map(|area| {
            let offset = addr.checked_sub(area.host.addr())?;
            (offset < area.host.len()).then_some(area.first + offset / BLOCK_BYTES)
        })
    }

    /// The blocks that `range` has a page of, with the guest's pages of it that lie there.
    pub(super) fn touched(
        &self,
        range: GuestRange,
    ) -> impl Iterator<Item = (usize, GuestRange)> + '_ {
        range.touched_blocks().filter_map(move |block| {
            let part = block.checked_range()?.intersection(&range)?;
            Some((self.index(block)?, part))
        })
    }

    fn area_of(&self, index: usize) -> &RamArea {
        let after = self.areas.partition_point(|area| area.first <= index);
        let area = after.checked_sub(1).map(|at| &self.areas[at]);
        area.filter(|area| index - area.first < area.blocks()).expect("a block of guest RAM")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::BackingKind;
    use crate::layout::MemoryLayout;
    use crate::units::Bytes;

    #[test]
    fn every_block_has_one_number_on_both_sides_of_the_hole() {
        let layout = MemoryLayout::new(Bytes::from_mib(4096).unwrap(), Bytes(0)).unwrap();
        let ram = GuestRam::new(layout, BackingKind::Thp).unwrap();
        let areas = Areas::of(&ram);
        assert_eq!(areas.blocks(), 2048);
        for index in 0..areas.blocks() {
            assert_eq!(areas.index(areas.block(index)), Some(index));
            let host = areas.host(index);
            assert_eq!(areas.index_of_addr(host.addr()), Some(index));
            assert_eq!(areas.index_of_addr(host.end() - 1), Some(index));
        }
        // 3 GiB lie below the hole, which ends at 4 GiB.
        assert_eq!(areas.block(1536), BlockId(2048));
        assert_eq!(areas.index(BlockId(1536)), None);
    }
}
