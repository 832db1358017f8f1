// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages are in the balloon, block by block.
//!
//! Two marks for each page:
//! - *ballooned*: the guest has given it up;
//! - *pending*: it is ballooned, and the host has not been given it back yet.
//!
//! All of it is sized by guest RAM, never by what a guest says, and is zeroed memory that costs the
//! host nothing before it is used.

use mm::blocks::mask::PageMask;
use mm::blocks::page_set::PageSet;
use mm::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages, Pfn};

use super::runs::append;

/// Words of one block's bitmap.
const WORDS: usize = (PAGES_PER_BLOCK / 64) as usize;

/// One stretch of RAM and the marks of its blocks.
#[derive(Debug)]
struct Region {
    ram: GuestRange,
    first_block: u64,
    ballooned: Vec<u64>,
    pending: Vec<u64>,
}

/// The record of the balloon.
#[derive(Debug)]
pub struct Ledger {
    regions: Vec<Region>,
    /// Pages ballooned, kept beside the bitmaps.
    ballooned: u64,
    /// Pages pending, kept beside the bitmaps.
    pending: u64,
}

/// How much of a block is in the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    Empty,
    /// Some of its pages.
    Partial,
    /// All of them, and it is wholly RAM: it can be given back as one.
    Full,
}

impl Ledger {
    /// An empty balloon over `ram`: ascending, disjoint ranges.
    pub fn new(ram: &[GuestRange]) -> Self {
        let regions = ram.iter().copied().map(Region::new).collect();
        Self { regions, ballooned: 0, pending: 0 }
    }

    /// Pages in the balloon.
    pub fn ballooned(&self) -> Pages {
        Pages(self.ballooned)
    }

    /// Pages in the balloon that the host has not been given back yet.
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
        let parts = self.clip(range).map(|part| {
            let region = self.region(part.start()).expect("clipped to a region");
            region.count(&region.ballooned, part)
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
            let all = region.ballooned.chunks_exact(WORDS).zip(region.first_block..);
            let wanted = all.skip(usize::try_from(first).unwrap_or(usize::MAX));
            for (words, id) in wanted.take_while(|(_, id)| *id < blocks.end.0) {
                let words = words.try_into().expect("a block has that many words");
                set.insert(BlockId(id), &PageMask::from_words(words));
            }
        }
    }

    /// How much of `block` is in the balloon.
    pub fn fill(&self, block: BlockId) -> Fill {
        let Some((region, words)) = self.block(block) else { return Fill::Empty };
        let words = &region.ballooned[words];
        if words.iter().all(|word| *word == 0) {
            Fill::Empty
        } else if words.iter().all(|word| *word == u64::MAX) {
            Fill::Full
        } else {
            Fill::Partial
        }
    }

    /// Whether `block` has pages that the host has not been given back yet.
    pub fn has_pending(&self, block: BlockId) -> bool {
        self.block(block)
            .is_some_and(|(region, words)| region.pending[words].iter().any(|word| *word != 0))
    }

    /// Whether `block` has ballooned pages that the host has been given back already.
    pub fn has_given_back(&self, block: BlockId) -> bool {
        self.block(block).is_some_and(|(region, words)| {
            let pending = &region.pending[words.clone()];
            region.ballooned[words].iter().zip(pending).any(|(b, p)| b & !p != 0)
        })
    }

    /// Marks nothing of `block` pending any more, and calls `run` for each run that was, in
    /// ascending order. A full block is one run, even if parts of it were given back before.
    pub fn take_pending(&mut self, block: BlockId, mut run: impl FnMut(GuestRange)) {
        let full = self.fill(block) == Fill::Full;
        let Some((region, words)) = self.block_mut(block) else { return };
        let pending: [u64; WORDS] =
            region.pending[words.clone()].try_into().expect("a block has that many words");
        region.pending[words].fill(0);
        let taken: u64 = pending.iter().map(|word| u64::from(word.count_ones())).sum();
        self.pending -= taken;
        if taken == 0 {
            return;
        }
        match block.checked_range() {
            Some(whole) if full => run(whole),
            Some(whole) => runs_of(&pending, whole.start(), run),
            None => {}
        }
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

    /// Forgets everything. The record so far comes back, which takes long to free for much RAM.
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

    /// Recounts everything from the bitmaps; says what does not agree.
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

    fn region(&self, pfn: Pfn) -> Option<&Region> {
        self.regions.iter().find(|region| region.holds(pfn))
    }

    fn region_mut(&mut self, pfn: Pfn) -> Option<&mut Region> {
        self.regions.iter_mut().find(|region| region.holds(pfn))
    }

    fn block(&self, block: BlockId) -> Option<(&Region, std::ops::Range<usize>)> {
        let region = self.region(first_page(block))?;
        Some((region, region.block_words(block)))
    }

    fn block_mut(&mut self, block: BlockId) -> Option<(&mut Region, std::ops::Range<usize>)> {
        let region = self.region_mut(first_page(block))?;
        let words = region.block_words(block);
        Some((region, words))
    }
}

impl Region {
    fn new(ram: GuestRange) -> Self {
        let first_block = ram.start().block().0;
        let blocks = (ram.end().0.div_ceil(PAGES_PER_BLOCK) - first_block) as usize;
        Self {
            ram,
            first_block,
            ballooned: vec![0; blocks * WORDS],
            pending: vec![0; blocks * WORDS],
        }
    }

    /// Whether the region has a bit for `pfn`: the blocks at its ends may reach beyond RAM.
    fn holds(&self, pfn: Pfn) -> bool {
        let first = self.first_block * PAGES_PER_BLOCK;
        pfn.0 >= first && (pfn.0 - first) / 64 < self.ballooned.len() as u64
    }

    fn block_words(&self, block: BlockId) -> std::ops::Range<usize> {
        let at = (block.0 - self.first_block) as usize * WORDS;
        at..at + WORDS
    }

    /// The words that hold `range`, each with the bits that are meant.
    fn words(&self, range: GuestRange) -> impl Iterator<Item = (usize, u64)> + use<> {
        let base = self.first_block * PAGES_PER_BLOCK;
        let (start, end) = (range.start().0 - base, range.end().0 - base);
        (start / 64..end.div_ceil(64)).map(move |word| {
            let low = start.max(word * 64) - word * 64;
            let high = end.min(word * 64 + 64) - word * 64;
            let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
            (word as usize, mask)
        })
    }

    fn count(&self, bits: &[u64], range: GuestRange) -> u64 {
        self.words(range).map(|(word, mask)| u64::from((bits[word] & mask).count_ones())).sum()
    }
}

/// The first page of a block; of one beyond the address space, a page that is no RAM.
fn first_page(block: BlockId) -> Pfn {
    Pfn(block.0.saturating_mul(PAGES_PER_BLOCK))
}

/// Calls `run` for each run of set bits, the first of which stands for page `start`.
fn runs_of(bits: &[u64], start: Pfn, mut run: impl FnMut(GuestRange)) {
    let mut open: Option<u64> = None;
    let mut close = |open: &mut Option<u64>, end: u64| {
        if let Some(from) = open.take()
            && let Some(range) = GuestRange::from_bounds(Pfn(from), Pfn(end))
        {
            run(range);
        }
    };
    let mut at = start.0;
    for word in bits {
        match *word {
            0 => close(&mut open, at),
            u64::MAX => {
                open.get_or_insert(at);
            }
            word => {
                for bit in 0..64 {
                    if word & (1 << bit) != 0 {
                        open.get_or_insert(at + bit);
                    } else {
                        close(&mut open, at + bit);
                    }
                }
            }
        }
        at += 64;
    }
    close(&mut open, at);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(Pfn(start), Pages(pages)).unwrap()
    }

    /// RAM of three whole blocks and a ragged one, a hole, then one more.
    fn ledger() -> Ledger {
        Ledger::new(&[range(0, 3 * 512 + 100), range(8 * 512, 512)])
    }

    fn taken(ledger: &mut Ledger, block: u64) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        ledger.take_pending(BlockId(block), |run| runs.push((run.start().0, run.pages().0)));
        runs
    }

    #[test]
    fn a_block_that_fills_up_is_given_back_as_one() {
        let mut ledger = ledger();
        assert_eq!(ledger.inflate(range(512, 200)), Pages(200));
        assert_eq!(taken(&mut ledger, 1), [(512, 200)]);
        assert_eq!(ledger.fill(BlockId(1)), Fill::Partial);
        assert_eq!(ledger.inflate(range(600, 424)), Pages(312));
        assert_eq!(ledger.fill(BlockId(1)), Fill::Full);
        assert_eq!(taken(&mut ledger, 1), [(512, 512)]);
        assert_eq!(taken(&mut ledger, 1), []);
        ledger.validate().unwrap();
    }

    #[test]
    fn a_ragged_block_is_never_full() {
        let mut ledger = ledger();
        assert_eq!(ledger.inflate(range(3 * 512, 100)), Pages(100));
        assert_eq!(ledger.fill(BlockId(3)), Fill::Partial);
        assert_eq!(taken(&mut ledger, 3), [(3 * 512, 100)]);
        ledger.validate().unwrap();
    }

    #[test]
    fn what_is_deflated_is_not_pending() {
        let mut ledger = ledger();
        ledger.inflate(range(10, 4));
        assert_eq!(ledger.deflate(range(11, 2)), Pages(2));
        assert_eq!(taken(&mut ledger, 0), [(10, 1), (13, 1)]);
        assert_eq!(ledger.pending(), Pages(0));
        assert_eq!(ledger.ballooned(), Pages(2));
    }

    #[test]
    fn blocks_that_do_not_exist_are_empty() {
        let mut ledger = ledger();
        for block in [4, 7, 9, u64::MAX] {
            assert_eq!(ledger.fill(BlockId(block)), Fill::Empty);
            assert_eq!(taken(&mut ledger, block), []);
        }
    }

    proptest! {
        /// The ledger is two sets of page numbers, and the fast counters agree with them.
        #[test]
        fn behaves_as_sets(
            ops in prop::collection::vec((0u8..3, 0u64..1636, 1u64..700), 1..40),
        ) {
            let mut ledger = ledger();
            let (mut ballooned, mut pending) = (BTreeSet::new(), BTreeSet::new());
            for (op, start, len) in ops {
                let pages = start..(start + len).min(1636);
                let run = range(start, pages.end - start);
                match op {
                    0 => {
                        let before = ballooned.len();
                        for page in pages {
                            if ballooned.insert(page) {
                                pending.insert(page);
                            }
                        }
                        prop_assert_eq!(
                            ledger.inflate(run).0 as usize, ballooned.len() - before
                        );
                    }
                    1 => {
                        let before = ballooned.len();
                        ballooned.retain(|page| !pages.contains(page));
                        pending.retain(|page| !pages.contains(page));
                        prop_assert_eq!(
                            ledger.deflate(run).0 as usize, before - ballooned.len()
                        );
                    }
                    _ => {
                        let block = start / 512;
                        let of_block = block * 512..block * 512 + 512;
                        let full = of_block.clone().all(|page| ballooned.contains(&page));
                        let expected: BTreeSet<u64> = if full && pending.range(of_block.clone()).next().is_some() {
                            of_block.clone().collect()
                        } else {
                            pending.range(of_block.clone()).copied().collect()
                        };
                        let got: BTreeSet<u64> = taken(&mut ledger, block)
                            .into_iter()
                            .flat_map(|(start, len)| start..start + len)
                            .collect();
                        prop_assert_eq!(got, expected);
                        pending.retain(|page| !of_block.contains(page));
                    }
                }
                prop_assert_eq!(ledger.ballooned().0 as usize, ballooned.len());
                prop_assert_eq!(ledger.pending().0 as usize, pending.len());
                prop_assert_eq!(ledger.count(run).0 as usize,
                    ballooned.range(run.start().0..run.end().0).count());
                prop_assert_eq!(ledger.validate(), Ok(()));
            }
            let pages: Vec<u64> =
                ledger.ranges().iter().flat_map(|run| run.start().0..run.end().0).collect();
            prop_assert!(pages.iter().eq(ballooned.iter()));
        }
    }
}
