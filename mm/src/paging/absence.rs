// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of an absent block: at its source, discarded since, or back in guest memory.

use std::ops::Range;

use crate::blocks::mask::PageMask;
use crate::units::{PAGES_PER_BLOCK, Pages, usize_from};

/// Pages in guest memory up to which the guest uses a block only a little.
pub(super) const FEW_PAGES: usize = 64;
/// Pages, as many as a power of two, that come back together; and from staging, where nothing is
/// compressed, if more than a few are there. Groups of 8 from the store would spare a busy guest almost half
/// of its waits the first time, but bring back more than it needs then and later: which pages of a group
/// were used is not known.
const NEAR: usize = 2;
const NEAR_STAGED: usize = 32;
/// Pages that are remembered as used together, and how many of them come back in a small flurry.
const MOST_USED: Pages = Pages(MOST_PAGES as u64);
const FEW_USED: Pages = Pages(32);
/// Pages of a block that come back by accesses, however slowly; with the next one all of it does.
pub(super) const MOST_PAGES: usize = 448;

/// Which page source has the contents of an absent block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceId(pub(super) u8);

/// The store's place among the sources.
pub(super) const STORE: SourceId = SourceId(0);
/// The place of blocks in staging.
pub(super) const STAGED: SourceId = SourceId(1);

/// Where the pages of an absent block are. Each page is in one of three places; most blocks have
/// all of them at the source, which costs nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Absence {
    source: SourceId,
    /// Given up by the guest since: they read as zero.
    dropped: Option<Box<PageMask>>,
    /// In guest memory, because the guest accessed them.
    back: Option<Box<PageMask>>,
    /// Of these, without those that only came along.
    accessed: Option<Box<PageMask>>,
    /// Accessed until it was last stored; if they are few, all that were in guest memory.
    used: Option<Box<PageMask>>,
}

impl Absence {
    /// Of a block that is with `source` as a whole.
    pub(super) fn new(source: SourceId) -> Self {
        Self { source, dropped: None, back: None, accessed: None, used: None }
    }

    /// The same pages, with their contents at `source`.
    pub(super) fn with_source(self, source: SourceId) -> Self {
        Self { source, ..self }
    }

    /// The same, of which the guest used these pages the last time.
    pub(super) fn with_used(self, used: Option<Box<PageMask>>) -> Self {
        Self { used, ..self }
    }

    /// What the guest has used of it, or if nothing, what it used the last time; not if that is most of it.
    pub(super) fn into_used(self) -> Option<Box<PageMask>> {
        self.accessed.or(self.used).filter(|pages| pages.count() <= MOST_USED)
    }

    /// Of a block of which no page is in guest memory, and none at a source.
    pub(super) fn empty(source: SourceId) -> Self {
        Self { source, dropped: boxed(PageMask::FULL), back: None, accessed: None, used: None }
    }

    /// Whether the source has no page.
    pub(super) fn is_empty(&self) -> bool {
        self.pages_gone() == PAGES_PER_BLOCK as usize
    }

    /// How many pages are not at the source.
    pub(super) fn pages_gone(&self) -> usize {
        let count = |mask: &Option<Box<PageMask>>| mask.as_ref().map_or(0, |mask| mask.count().0);
        usize_from(count(&self.dropped) + count(&self.back))
    }

    /// Whether all pages are in guest memory.
    pub(super) fn is_back(&self) -> bool {
        self.pages_back() == PAGES_PER_BLOCK as usize
    }

    /// The source.
    pub(super) fn source(&self) -> SourceId {
        self.source
    }

    /// The pages to bring back.
    pub(super) fn at_source(&self) -> PageMask {
        PageMask::FULL.difference(&self.dropped()).difference(&self.back())
    }

    /// The pages that are in guest memory.
    pub(super) fn back(&self) -> PageMask {
        self.back.as_deref().copied().unwrap_or_default()
    }

    /// The pages at the source that the guest may need with `page`: its neighbour, from staging more of
    /// them if many pages are in guest memory, and those that it used until the block was last stored, if
    /// they are few or it is `busy`.
    pub(super) fn needed_with(&self, page: usize, busy: bool) -> PageMask {
        let used = self.used.as_deref().filter(|used| busy || used.count() <= FEW_USED);
        let mut needed = used.copied().unwrap_or_default();
        let known = needed.intersection(&self.back()).count().0;
        let unknown = self.pages_back() - usize_from(known);
        let near = if self.is_staged() && unknown >= FEW_PAGES { NEAR_STAGED } else { NEAR };
        needed.set_range(neighbours(page, near));
        needed.intersection(&self.at_source())
    }

    /// The guest accessed `page` of those that are in guest memory now, and probably its neighbour; with
    /// it came what it used the last time.
    pub(super) fn access(&mut self, page: usize) {
        let mut pages = self.used.as_deref().copied().unwrap_or_default();
        pages.set_range(neighbours(page, NEAR));
        self.access_all(&pages);
    }

    /// The guest accesses all of `pages`, or probably does.
    pub(super) fn access_all(&mut self, pages: &PageMask) {
        let accessed = self.accessed.take().map_or(*pages, |accessed| accessed.union(pages));
        self.accessed = boxed(accessed.intersection(&self.back()));
    }

    /// Whether the source is staging, where all of its pages take memory.
    pub(super) fn is_staged(&self) -> bool {
        self.source == STAGED
    }

    /// How many pages are in guest memory.
    pub(super) fn pages_back(&self) -> usize {
        self.back.as_ref().map_or(0, |back| back.count().0 as usize)
    }

    /// Whether the source has all pages.
    pub(super) fn is_whole(&self) -> bool {
        self.dropped.is_none() && self.back.is_none()
    }

    /// Pages of it are in guest memory now.
    pub(super) fn bring_back(&mut self, pages: &PageMask) {
        self.back = boxed(self.back().union(pages));
        self.dropped = boxed(self.dropped().difference(pages));
    }

    /// The pages in guest memory are with the source again, apart from `gone`, which read as zero.
    pub(super) fn take_back(&mut self, gone: &PageMask) {
        let (back, accessed) = (self.back.take(), self.accessed.take());
        // Those that came with others become more each time: with many, it starts over.
        let few = back.filter(|back| back.count() <= FEW_USED);
        self.used = few.or(accessed.filter(|pages| pages.count() <= MOST_USED));
        self.drop_pages(gone);
    }

    /// The guest gave pages up: they read as zero from now on, wherever they were.
    pub(super) fn drop_pages(&mut self, pages: &PageMask) {
        self.dropped = boxed(self.dropped().union(pages));
        self.back = boxed(self.back().difference(pages));
    }

    fn dropped(&self) -> PageMask {
        self.dropped.as_deref().copied().unwrap_or_default()
    }
}

/// The aligned group of `count` pages that `page` is in; `count` is a power of two.
fn neighbours(page: usize, count: usize) -> Range<usize> {
    let first = page / count * count;
    first..first + count
}

fn boxed(mask: PageMask) -> Option<Box<PageMask>> {
    (!mask.is_empty()).then(|| Box::new(mask))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// For any history each page is in one place: where it was last put.
        #[test]
        fn a_page_is_in_one_place(
            history in prop::collection::vec((0u8..3, 0usize..512, 1usize..200), 0..30),
        ) {
            let mut absence = Absence::new(SourceId(0));
            // 0 at the source, 1 back, 2 dropped.
            let mut model = [0u8; 512];
            for (what, start, len) in history {
                let pages = start..(start + len).min(512);
                let mut mask = PageMask::EMPTY;
                mask.set_range(pages.clone());
                match what {
                    0 => {
                        absence.take_back(&mask);
                        model.iter_mut().filter(|at| **at == 1).for_each(|at| *at = 0);
                        model[pages].fill(2);
                    }
                    1 => {
                        absence.bring_back(&mask);
                        model[pages].fill(1);
                    }
                    _ => {
                        absence.drop_pages(&mask);
                        model[pages].fill(2);
                    }
                }
                for (page, at) in model.iter().enumerate() {
                    prop_assert_eq!(absence.at_source().contains(page), *at == 0);
                    prop_assert_eq!(absence.back().contains(page), *at == 1);
                    prop_assert_eq!(absence.dropped().contains(page), *at == 2);
                }
                prop_assert_eq!(absence.pages_back(), model.iter().filter(|at| **at == 1).count());
                prop_assert_eq!(absence.is_whole(), model == [0; 512]);
                prop_assert_eq!(absence.pages_gone(), model.iter().filter(|at| **at != 0).count());
                prop_assert_eq!(absence.is_empty(), !model.contains(&0));
                prop_assert_eq!(absence.is_back(), model == [1; 512]);
            }
        }
    }
}
