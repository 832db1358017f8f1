// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of every block of guest memory, read in one walk of the page table.
//!
//! The guest keeps running, so each block's entry was correct at some moment of the walk. A map
//! takes 12 bytes per block, and a mask for each block with wasted pages.

use std::collections::BTreeMap;

use super::mask::PageMask;
use super::page_set::PageSet;
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::sys::pagemap::MappedAs;
use crate::units::{
    BLOCK_BYTES, BlockId, Bytes, GuestRange, HostRange, PAGE_BYTES, PAGES_PER_BLOCK, Pages,
    usize_from,
};

bitflags::bitflags! {
    /// What is true of a block as a whole.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlockFlags: u8 {
        /// Mapped as one huge page.
        const HUGE = 1 << 0;
        /// In the CMA region.
        const CMA = 1 << 1;
        /// Excluded from plans: the guest could not evacuate it.
        const LEFT_OUT = 1 << 2;
        /// The kernel cannot tell whether it is huge.
        const UNSURE = 1 << 3;
    }
}

/// One block. Counts are of pages, from 0 to 512.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// In the host's memory.
    pub present: u16,
    /// In the balloon.
    pub ballooned: u16,
    /// Reported free by the guest, and absent on the host since then.
    pub reported: u16,
    /// Backing of GPU resources.
    pub gpu: u16,
    /// In the balloon but still present (wasted).
    pub wasted: u16,
    /// What is true of it as a whole.
    pub flags: BlockFlags,
}

const _: () = assert!(size_of::<Block>() <= 16);

impl Block {
    /// Pages whose contents the guest may still read.
    pub fn used(&self) -> Pages {
        Pages(u64::from(self.present.saturating_sub(self.wasted)))
    }

    /// Whether the guest gave up pages of it, which must not be filled again.
    pub fn has_holes(&self) -> bool {
        self.ballooned > 0 || self.reported > 0
    }

    /// Whether the block is a huge page without ballooned pages: nothing can be improved.
    pub fn is_whole(&self) -> bool {
        self.flags.contains(BlockFlags::HUGE) && !self.has_holes()
    }
}

/// The pages that devices hold, copied when the map is read; the devices keep running.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Pages in the balloon, blocks of it included.
    pub ballooned: PageSet,
    /// Pages that free page reporting named and that have been absent since.
    pub reported: PageSet,
    /// Pages that back GPU resources.
    pub gpu: PageSet,
    /// The guest's free memory without the balloon, if it reported that recently.
    pub guest_free: Option<Bytes>,
}

/// All blocks of a guest's RAM.
#[derive(Clone, Debug, Default)]
pub struct BlockMap {
    stretches: Vec<Stretch>,
    wasted: BTreeMap<BlockId, Box<PageMask>>,
    guest_free: Option<Bytes>,
}

/// Consecutive blocks: one region of RAM.
#[derive(Clone, Debug)]
struct Stretch {
    first: BlockId,
    blocks: Vec<Block>,
}

/// Sums over a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Guest RAM.
    pub ram: Bytes,
    /// In the host's memory.
    pub resident: Bytes,
    /// Of that, in huge pages.
    pub huge: Bytes,
    /// In the balloon.
    pub ballooned: Bytes,
    /// Reported free.
    pub reported: Bytes,
    /// Backing of GPU resources.
    pub gpu: Bytes,
    /// Resident although ballooned.
    pub wasted: Bytes,
    /// Blocks that belong entirely to GPU resources and are not huge pages.
    pub gpu_in_pieces: Bytes,
}

impl BlockMap {
    /// Reads the map of `ram`.
    ///
    /// # Errors
    /// [`GuestRamError`], if the page table cannot be read.
    pub fn read(ram: &GuestRam, held: &Holdings) -> Result<Self, GuestRamError> {
        let mut map = Self { guest_free: held.guest_free, ..Self::default() };
        let cma = ram.layout().cma();
        for region in ram.regions() {
            let first = region.guest().start().block();
            let count = region.host().len() / BLOCK_BYTES;
            let mut stretch = Stretch { first, blocks: vec![Block::default(); count] };
            let base = region.host().addr();
            // Present pages are checked one by one only in blocks with ballooned pages.
            let mut mixed: BTreeMap<BlockId, PageMask> = BTreeMap::new();
            region.backing().walk(region.host(), &mut |run, mapped| {
                stretch.count_run(run, base, mapped);
                mark_present(&mut mixed, run, base, first, &held.ballooned);
                mark_present(&mut mixed, run, base, first, &held.reported);
            })?;
            for (block, present) in &mixed {
                let wasted = present.intersection(held.ballooned.mask(*block));
                if !wasted.is_empty() {
                    stretch.with(*block, |b| b.wasted = small(wasted.count()));
                    map.wasted.insert(*block, Box::new(wasted));
                }
            }
            stretch.mark(&held.ballooned, |b, n| b.ballooned = n);
            for (block, reported) in held.reported.iter() {
                // A reported page that is present again is in use again.
                let present = mixed.get(&block).unwrap_or(&PageMask::EMPTY);
                let still = reported.difference(present).difference(held.ballooned.mask(block));
                stretch.with(block, |b| b.reported = small(still.count()));
            }
            stretch.mark(&held.gpu, |b, n| b.gpu = n);
            for block in cma.iter().flat_map(GuestRange::touched_blocks) {
                stretch.with(block, |b| b.flags |= BlockFlags::CMA);
            }
            map.stretches.push(stretch);
        }
        Ok(map)
    }

    /// All blocks, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &Block)> {
        self.stretches.iter().flat_map(|s| (s.first.0..).map(BlockId).zip(&s.blocks))
    }

    /// One block, if it is RAM.
    pub fn get(&self, id: BlockId) -> Option<&Block> {
        self.stretches.iter().find_map(|s| s.blocks.get(s.index(id)?))
    }

    /// Excludes `id` from plans.
    pub(super) fn leave_out(&mut self, id: BlockId) {
        for stretch in &mut self.stretches {
            stretch.with(id, |block| block.flags |= BlockFlags::LEFT_OUT);
        }
    }

    /// Includes all blocks in plans again.
    pub(super) fn leave_out_none(&mut self) {
        let blocks = self.stretches.iter_mut().flat_map(|stretch| &mut stretch.blocks);
        blocks.for_each(|block| block.flags.remove(BlockFlags::LEFT_OUT));
    }

    /// The pages of `id` that are in the balloon but still present.
    pub fn wasted(&self, id: BlockId) -> &PageMask {
        self.wasted.get(&id).map_or(&PageMask::EMPTY, |mask| mask)
    }

    /// The guest's reported free memory; see [`Holdings::guest_free`].
    pub fn guest_free(&self) -> Option<Bytes> {
        self.guest_free
    }

    /// Sums over all blocks.
    pub fn totals(&self) -> Totals {
        let mut pages = [0u64; 7];
        let mut blocks = 0u64;
        for (_, b) in self.iter() {
            let huge = if b.flags.contains(BlockFlags::HUGE) { b.present } else { 0 };
            let whole = u64::from(b.gpu) == PAGES_PER_BLOCK && !b.flags.contains(BlockFlags::HUGE);
            let pieces = if whole && !b.has_holes() { b.gpu } else { 0 };
            let counts = [b.present, huge, b.ballooned, b.reported, b.gpu, b.wasted, pieces];
            for (sum, count) in pages.iter_mut().zip(counts) {
                *sum += u64::from(count);
            }
            blocks += 1;
        }
        let [resident, huge, ballooned, reported, gpu, wasted, gpu_in_pieces] =
            pages.map(|n| Pages(n).bytes());
        let ram = Pages(blocks * PAGES_PER_BLOCK).bytes();
        Totals { ram, resident, huge, ballooned, reported, gpu, wasted, gpu_in_pieces }
    }

    /// A map of given blocks, for tests of what reads maps.
    #[cfg(test)]
    pub(crate) fn of(first: BlockId, blocks: Vec<Block>, wasted: Vec<(BlockId, PageMask)>) -> Self {
        let wasted = wasted.into_iter().map(|(id, mask)| (id, Box::new(mask))).collect();
        Self { stretches: vec![Stretch { first, blocks }], wasted, guest_free: None }
    }

    /// The same map, of a guest that reports this much free memory.
    #[cfg(test)]
    pub(crate) fn with_guest_free(self, free: Bytes) -> Self {
        Self { guest_free: Some(free), ..self }
    }
}

impl Stretch {
    fn index(&self, id: BlockId) -> Option<usize> {
        id.0.checked_sub(self.first.0).map(usize_from)
    }

    /// Does `change` to block `id`, if it is one of these.
    fn with(&mut self, id: BlockId, change: impl FnOnce(&mut Block)) {
        if let Some(block) = self.index(id).and_then(|i| self.blocks.get_mut(i)) {
            change(block);
        }
    }

    /// Tells each block how many pages of `set` it has.
    fn mark(&mut self, set: &PageSet, change: impl Fn(&mut Block, u16)) {
        for (id, mask) in set.iter() {
            self.with(id, |block| change(block, small(mask.count())));
        }
    }

    /// Counts a run of present pages, in a region that begins at host address `base`.
    fn count_run(&mut self, run: HostRange, base: usize, mapped: MappedAs) {
        let (mut at, end) = (run.addr() - base, run.end() - base);
        let flags = match mapped {
            MappedAs::Huge => BlockFlags::HUGE,
            MappedAs::Small => BlockFlags::empty(),
            MappedAs::Unknown => BlockFlags::UNSURE,
        };
        while at < end {
            let next = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let pages = (next.min(end) - at) / PAGE_BYTES;
            if let Some(block) = self.blocks.get_mut(at / BLOCK_BYTES) {
                block.present += pages as u16;
                block.flags |= flags;
            }
            at = next;
        }
    }
}

/// Notes the present pages of `run` for blocks that have pages in `ballooned`.
fn mark_present(
    mixed: &mut BTreeMap<BlockId, PageMask>,
    run: HostRange,
    base: usize,
    first: BlockId,
    ballooned: &PageSet,
) {
    let (start, end) = ((run.addr() - base) / PAGE_BYTES, (run.end() - base) / PAGE_BYTES);
    let per_block = PAGES_PER_BLOCK as usize;
    let blocks = BlockId(first.0 + (start / per_block) as u64)
        ..BlockId(first.0 + end.div_ceil(per_block) as u64);
    for (id, _) in ballooned.range(blocks) {
        let block_start = (id.0 - first.0) as usize * per_block;
        let from = start.max(block_start) - block_start;
        let to = end.min(block_start + per_block) - block_start;
        mixed.entry(id).or_default().set_range(from..to);
    }
}

/// A count of pages of one block.
fn small(pages: Pages) -> u16 {
    u16::try_from(pages.0).expect("a block has 512 pages")
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::backing::BackingKind;
    use crate::layout::MemoryLayout;
    use crate::units::Pfn;

    fn ram(kind: BackingKind) -> GuestRam {
        let mib = |n| Bytes::from_mib(n).unwrap();
        GuestRam::new(MemoryLayout::new(mib(16), mib(4)).unwrap(), kind).unwrap()
    }

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(Pfn(start), Pages(pages)).unwrap()
    }

    #[test]
    fn what_was_reported_and_is_used_again_is_not_reported() {
        let ram = ram(BackingKind::Small);
        for page in 100..150u64 {
            ram.memory().write_obj(page, GuestAddress(page << 12)).unwrap();
        }
        let held = Holdings {
            reported: [range(0, 400)].into_iter().collect(),
            ballooned: [range(350, 100)].into_iter().collect(),
            ..Holdings::default()
        };
        let map = BlockMap::read(&ram, &held).unwrap();
        let zero = map.get(BlockId(0)).unwrap();
        assert_eq!((zero.present, zero.reported, zero.ballooned), (50, 300, 100));
    }

    #[test]
    fn present_and_ballooned_pages_are_told_apart() {
        let ram = ram(BackingKind::Small);
        for page in 500..700u64 {
            ram.memory().write_obj(page, GuestAddress(page << 12)).unwrap();
        }
        let held = Holdings {
            ballooned: [range(600, 200)].into_iter().collect(),
            gpu: [range(505, 3)].into_iter().collect(),
            ..Holdings::default()
        };
        let map = BlockMap::read(&ram, &held).unwrap();
        let zero = map.get(BlockId(0)).unwrap();
        assert_eq!((zero.present, zero.ballooned, zero.gpu, zero.used()), (12, 0, 3, Pages(12)));
        let one = map.get(BlockId(1)).unwrap();
        assert_eq!((one.present, one.ballooned, one.wasted), (188, 200, 100));
        assert!(map.wasted(BlockId(1)).runs().eq(std::iter::once(88..188)));
        assert_eq!(map.get(BlockId(8)), None);
        let flags: Vec<_> = map.iter().map(|(_, b)| b.flags.contains(BlockFlags::CMA)).collect();
        assert_eq!(flags, [false, false, false, false, false, true, true, false]);
        let totals = map.totals();
        assert_eq!(totals.ram, Bytes(16 << 20));
        assert_eq!(totals.resident, Bytes(200 << 12));
        assert_eq!((totals.ballooned, totals.wasted), (Bytes(200 << 12), Bytes(100 << 12)));
    }

    #[test]
    fn the_map_agrees_with_the_page_table() {
        let ram = ram(BackingKind::Thp);
        ram.populate(range(512, 1024)).unwrap();
        let map = BlockMap::read(&ram, &Holdings::default()).unwrap();
        let residency = ram.residency().unwrap();
        assert_eq!(map.totals().resident, residency.resident);
        assert_eq!(Some(map.totals().huge), residency.huge);
        assert_eq!(map.get(BlockId(2)).unwrap().present, 512);
    }
}
