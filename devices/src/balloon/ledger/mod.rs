// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages are in the balloon, block by block.
//!
//! Two marks for each page:
//! - *ballooned*: the guest has given it up;
//! - *pending*: it is ballooned and not yet discarded on the host.
//!
//! The size depends on guest RAM only, never on guest input, and zeroed memory costs the host
//! nothing before it is used.
//!
//! - `region_marks.rs`: the marks of one stretch of RAM

mod region_marks;

use mm::blocks::mask::PageMask;
use mm::blocks::page_set::PageSet;
use mm::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages, Pfn, usize_from};

use crate::balloon::page_runs::append;
use region_marks::{RegionMarks, WORDS, runs_of};

/// The record of the balloon.
#[derive(Debug)]
pub struct Ledger {
    regions: Vec<RegionMarks>,
    /// Ballooned pages, counted in addition to the bitmaps.
    ballooned: u64,
    /// Pending pages, counted in addition to the bitmaps.
    pending: u64,
}

/// How much of a block is in the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFill {
    /// Nothing.
    Empty,
    /// Some of its pages.
    Partial,
    /// All of its pages, and the block is entirely RAM: it can be discarded as one.
    Full,
}

impl Ledger {
    /// An empty balloon over `ram`: ascending, disjoint ranges.
    pub fn new(ram: &[GuestRange]) -> Self {
        let regions = ram.iter().copied().map(RegionMarks::new).collect();
        Self { regions, ballooned: 0, pending: 0 }
    }

    /// Pages in the balloon.
    pub fn ballooned(&self) -> Pages {
        Pages(self.ballooned)
    }

    /// Pages in the balloon that are not yet discarded on the host.
    pub fn pending(&self) -> Pages {
        Pages(self.pending)
    }

    /// All RAM.
    pub fn ram(&self) -> Pages {
        Pages(self.regions.iter().map(|region| region.ram.pages().0).sum())
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: GuestRange) -> bool {
        self.regions.iter().any(|region| region.ram.covers(&range))
    }

    /// The parts of `range` that are RAM.
    pub fn clip(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + '_ {
        self.regions.iter().filter_map(move |region| region.ram.intersection(&range))
    }

    /// Pages of `range` that are in the balloon.
    pub fn count(&self, range: GuestRange) -> Pages {
        let parts = self.regions.iter().filter_map(|region| {
            let part = region.ram.intersection(&range)?;
            Some(region.count(&region.ballooned, part))
        });
        Pages(parts.sum())
    }

    /// Puts `range`, all RAM, into the balloon; returns how many of its pages were new to it.
    /// Those are pending.
    pub fn inflate(&mut self, range: GuestRange) -> Pages {
        let Some(region) = self.region_mut(range.start()) else { return Pages(0) };
        let mut new = 0;
        for (word, mask) in region.words(range) {
            let fresh = mask & !region.ballooned[word];
            region.ballooned[word] |= fresh;
            region.pending[word] |= fresh;
            new += u64::from(fresh.count_ones());
        }
        self.ballooned += new;
        self.pending += new;
        Pages(new)
    }

    /// Takes `range`, all RAM, out of the balloon; returns how many of its pages were in it.
    /// None of them is pending any more.
    pub fn deflate(&mut self, range: GuestRange) -> Pages {
        let Some(region) = self.region_mut(range.start()) else { return Pages(0) };
        let (mut gone, mut dropped) = (0, 0);
        for (word, mask) in region.words(range) {
            gone += u64::from((region.ballooned[word] & mask).count_ones());
            dropped += u64::from((region.pending[word] & mask).count_ones());
            region.ballooned[word] &= !mask;
            region.pending[word] &= !mask;
        }
        self.ballooned -= gone;
        self.pending -= dropped;
        Pages(gone)
    }

    /// The pages of the balloon, by block.
    pub fn page_set(&self) -> PageSet {
        let mut set = PageSet::new();
        self.copy_pages(BlockId(0)..BlockId(u64::MAX), &mut set);
        set
    }

    /// Adds the pages of the balloon that lie in `blocks` to `set`.
    pub fn copy_pages(&self, blocks: std::ops::Range<BlockId>, set: &mut PageSet) {
        for region in &self.regions {
            let first = blocks.start.0.saturating_sub(region.first_block);
            let all = region.ballooned.as_chunks::<WORDS>().0.iter().zip(region.first_block..);
            let wanted = all.skip(usize_from(first));
            for (words, id) in wanted.take_while(|(_, id)| *id < blocks.end.0) {
                set.insert(BlockId(id), &PageMask::from_words(*words));
            }
        }
    }

    /// How much of `block` is in the balloon.
    pub fn fill(&self, block: BlockId) -> BlockFill {
        let Some((region, words)) = self.block(block) else { return BlockFill::Empty };
        let words = &region.ballooned[words];
        if words.iter().all(|word| *word == 0) {
            BlockFill::Empty
        } else if words.iter().all(|word| *word == u64::MAX) {
            BlockFill::Full
        } else {
            BlockFill::Partial
        }
    }

    /// Whether `block` has pages that are not yet discarded on the host.
    pub fn has_pending(&self, block: BlockId) -> bool {
        self.block(block)
            .is_some_and(|(region, words)| region.pending[words].iter().any(|word| *word != 0))
    }

    /// Whether `block` has ballooned pages that are already discarded on the host.
    pub fn has_given_back(&self, block: BlockId) -> bool {
        self.block(block).is_some_and(|(region, words)| {
            let pending = &region.pending[words.clone()];
            region.ballooned[words].iter().zip(pending).any(|(b, p)| b & !p != 0)
        })
    }

    /// Clears the pending state of the first `most` pending runs of `block` and calls `run` for
    /// each, in ascending order; returns whether others are left. A full block is one run, even if
    /// parts of it were discarded before.
    pub fn take_pending(
        &mut self,
        block: BlockId,
        most: usize,
        mut run: impl FnMut(GuestRange),
    ) -> bool {
        let full = self.fill(block) == BlockFill::Full;
        let Some((region, words)) = self.block_mut(block) else { return false };
        let mut pending = [0; WORDS];
        pending.swap_with_slice(&mut region.pending[words]);
        let mut taken: u64 = pending.iter().map(|word| u64::from(word.count_ones())).sum();
        let mut left = 0;
        match block.checked_range() {
            Some(whole) if full && taken > 0 => run(whole),
            Some(whole) => {
                let mut runs = 0;
                runs_of(&pending, whole.start(), |range| {
                    if runs < most {
                        runs += 1;
                        return run(range);
                    }
                    for (word, mask) in region.words(range) {
                        region.pending[word] |= mask;
                    }
                    left += range.pages().0;
                });
            }
            None => {}
        }
        taken -= left;
        self.pending -= taken;
        left > 0
    }

    /// Blocks that have pending pages, in ascending order.
    pub fn pending_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.regions.iter().flat_map(|region| {
            let blocks = region.pending.chunks_exact(WORDS).zip(region.first_block..);
            blocks.filter(|(words, _)| words.iter().any(|w| *w != 0)).map(|(_, id)| BlockId(id))
        })
    }

    /// Calls `run` for each run of pages of `range` (all of one region) that are in the balloon.
    pub fn runs_in(&self, range: GuestRange, mut run: impl FnMut(GuestRange)) {
        let Some(region) = self.region(range.start()) else { return };
        for (word, mask) in region.words(range) {
            let start = Pfn(region.first_block * PAGES_PER_BLOCK + word as u64 * 64);
            runs_of(&[region.ballooned[word] & mask], start, &mut run);
        }
    }

    /// The pages of the balloon as runs, in ascending order.
    pub fn ranges(&self) -> mm::range_set::RangeSet {
        let mut set = mm::range_set::RangeSet::new();
        for region in &self.regions {
            let start = Pfn(region.first_block * PAGES_PER_BLOCK);
            runs_of(&region.ballooned, start, |run| {
                set.insert(run);
            });
        }
        set
    }

    /// Clears the ledger and returns the old one, which takes long to free for large RAM.
    #[must_use = "drop it where no device's lock is held"]
    pub fn clear(&mut self) -> Self {
        // Fresh zeroes cost the host nothing; written ones would.
        let ram: Vec<GuestRange> = self.regions.iter().map(|region| region.ram).collect();
        std::mem::replace(self, Self::new(&ram))
    }

    /// The RAM of all blocks that have a page in the balloon, as runs of blocks, in ascending order.
    pub fn touched_runs(&self) -> Vec<GuestRange> {
        let mut runs = Vec::new();
        for region in &self.regions {
            let blocks = region.ballooned.chunks_exact(WORDS).zip(region.first_block..);
            for (_, id) in blocks.filter(|(words, _)| words.iter().any(|word| *word != 0)) {
                let part = BlockId(id).checked_range().and_then(|b| b.intersection(&region.ram));
                part.into_iter().for_each(|part| append(&mut runs, part));
            }
        }
        runs
    }

    /// Recounts everything from the bitmaps.
    ///
    /// # Errors
    ///
    /// The first mismatch.
    pub fn validate(&self) -> Result<(), String> {
        let (mut ballooned, mut pending) = (0, 0);
        for region in &self.regions {
            ballooned += region.count(&region.ballooned, region.ram);
            pending += region.count(&region.pending, region.ram);
            let marked: u64 =
                region.ballooned.iter().map(|word| u64::from(word.count_ones())).sum();
            if marked != region.count(&region.ballooned, region.ram) {
                return Err(format!("pages outside {} are in the balloon", region.ram));
            }
            let stray = region.pending.iter().zip(&region.ballooned).any(|(p, b)| p & !b != 0);
            if stray {
                return Err(format!("pages of {} are pending and not in the balloon", region.ram));
            }
        }
        if (ballooned, pending) != (self.ballooned, self.pending) {
            return Err(format!(
                "counted {ballooned} pages, {pending} pending; kept {}, {}",
                self.ballooned, self.pending
            ));
        }
        Ok(())
    }

    fn region(&self, pfn: Pfn) -> Option<&RegionMarks> {
        self.regions.iter().find(|region| region.holds(pfn))
    }

    fn region_mut(&mut self, pfn: Pfn) -> Option<&mut RegionMarks> {
        self.regions.iter_mut().find(|region| region.holds(pfn))
    }

    fn block(&self, block: BlockId) -> Option<(&RegionMarks, std::ops::Range<usize>)> {
        let region = self.region(first_page(block))?;
        Some((region, region.block_words(block)))
    }

    fn block_mut(&mut self, block: BlockId) -> Option<(&mut RegionMarks, std::ops::Range<usize>)> {
        let region = self.region_mut(first_page(block))?;
        let words = region.block_words(block);
        Some((region, words))
    }
}

/// The first page of a block; for a block beyond the address space, a page that is not RAM.
fn first_page(block: BlockId) -> Pfn {
    Pfn(block.0.saturating_mul(PAGES_PER_BLOCK))
}

#[cfg(test)]
mod tests;
