// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sets of guest pages kept by block: nothing for a block without any, a word for a whole one, and
//! a mask only for a mixed one.

use std::collections::BTreeMap;
use std::ops::Range;

use super::mask::PageMask;
use crate::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages};

/// Which pages of one block are in the set. A block without any is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cover {
    Whole,
    Part(Box<PageMask>),
}

impl Cover {
    fn of(mask: PageMask) -> Option<Self> {
        match mask {
            m if m.is_empty() => None,
            m if m.is_full() => Some(Self::Whole),
            m => Some(Self::Part(Box::new(m))),
        }
    }

    fn mask(&self) -> &PageMask {
        match self {
            Self::Whole => &PageMask::FULL,
            Self::Part(mask) => mask,
        }
    }
}

/// A set of guest pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    blocks: BTreeMap<BlockId, Cover>,
    pages: u64,
}

impl PageSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many pages.
    pub fn pages(&self) -> Pages {
        Pages(self.pages)
    }

    /// The pages of `block` that are in the set.
    pub fn mask(&self, block: BlockId) -> &PageMask {
        self.blocks.get(&block).map_or(&PageMask::EMPTY, Cover::mask)
    }

    /// Blocks with any page in the set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &PageMask)> {
        self.blocks.iter().map(|(&block, cover)| (block, cover.mask()))
    }

    /// Those of the given blocks that have any page in the set, in ascending order.
    pub fn range(&self, blocks: Range<BlockId>) -> impl Iterator<Item = (BlockId, &PageMask)> {
        let blocks = if blocks.start < blocks.end { blocks } else { BlockId(0)..BlockId(0) };
        self.blocks.range(blocks).map(|(&block, cover)| (block, cover.mask()))
    }

    /// Adds `pages` of `block`; returns how many were new.
    pub fn insert(&mut self, block: BlockId, pages: &PageMask) -> Pages {
        let before = *self.mask(block);
        self.replace(block, before, before.union(pages))
    }

    /// Takes `pages` of `block` out; returns how many were there.
    pub fn remove(&mut self, block: BlockId, pages: &PageMask) -> Pages {
        let before = *self.mask(block);
        self.replace(block, before, before.difference(pages))
    }

    /// Adds all of `range`; returns how many pages were new.
    pub fn insert_range(&mut self, range: GuestRange) -> Pages {
        let new = range.touched_blocks().map(|b| self.insert(b, &PageMask::of_range(b, range)).0);
        Pages(new.sum())
    }

    /// Takes all of `range` out; returns how many pages were there.
    pub fn remove_range(&mut self, range: GuestRange) -> Pages {
        let gone = range.touched_blocks().map(|b| self.remove(b, &PageMask::of_range(b, range)).0);
        Pages(gone.sum())
    }

    /// Recounts the pages from the blocks.
    pub fn recount(&self) -> Pages {
        let count = |cover: &Cover| match cover {
            Cover::Whole => PAGES_PER_BLOCK,
            Cover::Part(mask) => mask.count().0,
        };
        Pages(self.blocks.values().map(count).sum())
    }

    fn replace(&mut self, block: BlockId, before: PageMask, after: PageMask) -> Pages {
        let (was, is) = (before.count().0, after.count().0);
        if was == is {
            return Pages(0);
        }
        match Cover::of(after) {
            Some(cover) => self.blocks.insert(block, cover),
            None => self.blocks.remove(&block),
        };
        self.pages = self.pages - was + is;
        Pages(was.abs_diff(is))
    }
}

impl FromIterator<GuestRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = GuestRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::range_set::RangeSet;
    use crate::units::Pfn;

    proptest! {
        /// The set behaves like a set of ranges.
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..3000, 1u64..1500), 1..40)) {
            let (mut set, mut model) = (PageSet::new(), RangeSet::new());
            for (insert, start, len) in ops {
                let range = GuestRange::new(Pfn(start), Pages(len)).unwrap();
                let (mine, other) = if insert {
                    (set.insert_range(range), model.insert(range))
                } else {
                    (set.remove_range(range), model.remove(range))
                };
                prop_assert_eq!(mine, other);
                prop_assert_eq!(set.pages(), model.pages());
                prop_assert_eq!(set.recount(), model.pages());
            }
            let pages: RangeSet = set.iter().flat_map(|(b, mask)| mask.ranges_in(b)).collect();
            prop_assert_eq!(pages, model);
        }
    }
}
