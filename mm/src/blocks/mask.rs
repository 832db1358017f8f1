// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which of a block's 512 pages: one bit each.

use std::fmt;
use std::ops::Range;

use crate::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages, Pfn};

const WORDS: usize = PAGES_PER_BLOCK as usize / 64;

/// A set of pages of one block, by their index in it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PageMask([u64; WORDS]);

impl PageMask {
    /// No page.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// All pages.
    pub const FULL: Self = Self([u64::MAX; WORDS]);

    /// The pages whose bits are set: page 0 is the lowest bit of the first word.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// The pages of `range` that lie in `block`.
    pub fn of_range(block: BlockId, range: GuestRange) -> Self {
        let mut mask = Self::EMPTY;
        if let Some(part) = block.checked_range().and_then(|b| b.intersection(&range)) {
            let first = part.start().index_in_block();
            mask.set_range(first..first + part.pages().0 as usize);
        }
        mask
    }

    /// Whether page `index` (below 512) is in the set.
    pub const fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// Adds page `index` (below 512); whether it was new.
    pub const fn insert(&mut self, index: usize) -> bool {
        let new = !self.contains(index);
        self.0[index / 64] |= 1 << (index % 64);
        new
    }

    /// Takes page `index` (below 512) out; whether it was there.
    pub const fn remove(&mut self, index: usize) -> bool {
        let there = self.contains(index);
        self.0[index / 64] &= !(1 << (index % 64));
        there
    }

    /// Adds the pages with the given indices (end at most 512).
    pub fn set_range(&mut self, indices: Range<usize>) {
        for (word, bits) in words_of(indices) {
            self.0[word] |= bits;
        }
    }

    /// Takes the pages with the given indices (end at most 512) out.
    pub fn clear_range(&mut self, indices: Range<usize>) {
        for (word, bits) in words_of(indices) {
            self.0[word] &= !bits;
        }
    }

    /// How many pages.
    pub fn count(&self) -> Pages {
        Pages(self.0.iter().map(|w| u64::from(w.count_ones())).sum())
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Whether it is all of the block.
    pub fn is_full(&self) -> bool {
        *self == Self::FULL
    }

    /// The pages that either has.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// The pages that both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// The pages that `other` has not.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// The runs of pages, by index, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let mask = *self;
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = mask.find(from, true)?;
            let end = mask.find(start, false).unwrap_or(WORDS * 64);
            from = end;
            Some(start..end)
        })
    }

    /// The runs of pages as ranges of guest memory, if the set is that of `block`.
    pub fn ranges_in(&self, block: BlockId) -> impl Iterator<Item = GuestRange> + use<> {
        let start = block.checked_range().map(|range| range.start());
        self.runs().filter_map(move |run| {
            let first = start?.checked_add(Pages(run.start as u64))?;
            GuestRange::new(first, Pages(run.len() as u64))
        })
    }

    /// First index from `from` on whose page is (or is not) in the set.
    fn find(&self, from: usize, present: bool) -> Option<usize> {
        let mut at = from;
        while at < WORDS * 64 {
            let word = if present { self.0[at / 64] } else { !self.0[at / 64] };
            let rest = word >> (at % 64);
            if rest != 0 {
                return Some(at + rest.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|i| op(self.0[i], other.0[i])))
    }
}

impl FromIterator<Pfn> for PageMask {
    /// The places in their block of pages that are all of one block.
    fn from_iter<I: IntoIterator<Item = Pfn>>(pages: I) -> Self {
        let mut mask = Self::EMPTY;
        for page in pages {
            mask.insert(page.index_in_block());
        }
        mask
    }
}

impl fmt::Debug for PageMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

/// Each word that `indices` has bits in, with those bits.
fn words_of(indices: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = indices;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let low = start.saturating_sub(word * 64).min(64);
        let high = (end - word * 64).min(64);
        (word, bits_below(high) & !bits_below(low))
    })
}

/// The lowest `n` bits (at most 64).
const fn bits_below(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(mask: &PageMask) -> BTreeSet<usize> {
        mask.runs().flatten().collect()
    }

    #[test]
    fn ranges_are_cut_to_the_block() {
        let range = GuestRange::from_bounds(Pfn(500), Pfn(1030)).unwrap();
        let count = |block| PageMask::of_range(BlockId(block), range).count();
        assert_eq!(
            (count(0), count(1), count(2), count(3)),
            (Pages(12), Pages(512), Pages(6), Pages(0))
        );
        let back: Vec<_> = PageMask::of_range(BlockId(2), range).ranges_in(BlockId(2)).collect();
        assert_eq!(back, [GuestRange::from_bounds(Pfn(1024), Pfn(1030)).unwrap()]);
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(
            ops in prop::collection::vec((0u8..4, 0usize..512, 0usize..130), 0..40),
            other in prop::collection::btree_set(0usize..512, 0..100),
        ) {
            let (mut mask, mut model) = (PageMask::EMPTY, BTreeSet::new());
            for (op, start, len) in ops {
                let end = (start + len).min(512);
                match op {
                    0 => prop_assert_eq!(mask.insert(start), model.insert(start)),
                    1 => prop_assert_eq!(mask.remove(start), model.remove(&start)),
                    2 => { mask.set_range(start..end); model.extend(start..end); }
                    _ => { mask.clear_range(start..end); model.retain(|p| !(start..end).contains(p)); }
                }
                prop_assert_eq!(&pages(&mask), &model);
                prop_assert_eq!(mask.count().0 as usize, model.len());
                prop_assert_eq!(mask.contains(start), model.contains(&start));
            }
            let other_mask: PageMask = other.iter().map(|p| Pfn(*p as u64)).collect();
            prop_assert_eq!(pages(&mask.union(&other_mask)), model.union(&other).copied().collect());
            prop_assert_eq!(pages(&mask.intersection(&other_mask)), model.intersection(&other).copied().collect());
            prop_assert_eq!(pages(&mask.difference(&other_mask)), model.difference(&other).copied().collect());
        }
    }
}
