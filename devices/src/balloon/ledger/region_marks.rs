// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The marks of one stretch of RAM, a bit for each page.

use mm::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pfn};

/// Words of one block's bitmap.
pub(super) const WORDS: usize = (PAGES_PER_BLOCK / 64) as usize;

/// One stretch of RAM and the marks of its blocks.
#[derive(Debug)]
pub(super) struct RegionMarks {
    pub(super) ram: GuestRange,
    pub(super) first_block: u64,
    pub(super) ballooned: Vec<u64>,
    pub(super) pending: Vec<u64>,
}

impl RegionMarks {
    pub(super) fn new(ram: GuestRange) -> Self {
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
    pub(super) fn holds(&self, pfn: Pfn) -> bool {
        let first = self.first_block * PAGES_PER_BLOCK;
        pfn.0 >= first && (pfn.0 - first) / 64 < self.ballooned.len() as u64
    }

    pub(super) fn block_words(&self, block: BlockId) -> std::ops::Range<usize> {
        let at = (block.0 - self.first_block) as usize * WORDS;
        at..at + WORDS
    }

    /// The words that contain `range`, each with the mask of its bits.
    pub(super) fn words(&self, range: GuestRange) -> impl Iterator<Item = (usize, u64)> + use<> {
        let base = self.first_block * PAGES_PER_BLOCK;
        let (start, end) = (range.start().0 - base, range.end().0 - base);
        (start / 64..end.div_ceil(64)).map(move |word| {
            let low = start.max(word * 64) - word * 64;
            let high = end.min(word * 64 + 64) - word * 64;
            let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
            (word as usize, mask)
        })
    }

    pub(super) fn count(&self, bits: &[u64], range: GuestRange) -> u64 {
        self.words(range).map(|(word, mask)| u64::from((bits[word] & mask).count_ones())).sum()
    }
}

/// Calls `run` for each run of set bits, the first of which stands for page `start`.
pub(super) fn runs_of(bits: &[u64], start: Pfn, mut run: impl FnMut(GuestRange)) {
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
