// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sets of guest pages as sorted, disjoint, merged ranges.

use std::collections::BTreeMap;

use crate::units::{GuestRange, Pages, Pfn};

/// A set of guest pages, kept as the fewest ranges that hold it.
///
/// ```
/// use mm::range_set::RangeSet;
/// use mm::units::{GuestRange, Pages, Pfn};
///
/// let mut set = RangeSet::new();
/// set.insert(GuestRange::new(Pfn(10), Pages(5)).unwrap());
/// set.insert(GuestRange::new(Pfn(15), Pages(5)).unwrap());
/// assert_eq!((set.len(), set.pages()), (1, Pages(10)));
/// assert!(set.contains(Pfn(19)));
/// ```
///
/// Insertion and removal cost O(log n) for the lookup and O(k) for the k ranges that they replace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end (exclusive); no two touch.
    ranges: BTreeMap<u64, u64>,
    pages: u64,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of pages in the set.
    pub fn pages(&self) -> Pages {
        Pages(self.pages)
    }

    /// Whether the set has no page.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of ranges that the set is made of.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = GuestRange> + '_ {
        self.ranges.iter().map(|(&start, &end)| as_range(start, end))
    }

    /// Whether `pfn` is in the set.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.ranges.range(..=pfn.0).next_back().is_some_and(|(_, &end)| pfn.0 < end)
    }

    /// Whether all of `range` is in the set.
    pub fn covers(&self, range: GuestRange) -> bool {
        let start = range.start().0;
        self.ranges.range(..=start).next_back().is_some_and(|(_, &end)| range.end().0 <= end)
    }

    /// The parts of `range` that are in the set, in ascending order.
    pub fn intersection(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + '_ {
        let first =
            self.ranges.range(..=range.start().0).next_back().map_or(range.start().0, |(&s, _)| s);
        self.ranges
            .range(first..range.end().0)
            .filter_map(move |(&s, &e)| as_range(s, e).intersection(&range))
    }

    /// Adds all of `range`; returns how many of its pages were new.
    pub fn insert(&mut self, range: GuestRange) -> Pages {
        let (mut start, mut end) = (range.start().0, range.end().0);
        let mut swallowed = 0;
        // Every range that overlaps or touches becomes part of the new range.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            swallowed += e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
        let added = (end - start) - swallowed;
        self.pages += added;
        Pages(added)
    }

    /// Takes all of `range` out; returns how many pages that were in the set left it.
    pub fn remove(&mut self, range: GuestRange) -> Pages {
        let (start, end) = (range.start().0, range.end().0);
        let mut removed = 0;
        while let Some((&s, &e)) = self.ranges.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.ranges.remove(&s);
            if s < start {
                self.ranges.insert(s, start);
            }
            if e > end {
                self.ranges.insert(end, e);
            }
            removed += e.min(end) - s.max(start);
        }
        self.pages -= removed;
        Pages(removed)
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.pages = 0;
    }
}

impl FromIterator<GuestRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = GuestRange>>(iter: I) -> Self {
        let mut set = Self::new();
        for range in iter {
            set.insert(range);
        }
        set
    }
}

/// Stored bounds came from a `GuestRange`, so they make one again.
fn as_range(start: u64, end: u64) -> GuestRange {
    GuestRange::from_bounds(Pfn(start), Pfn(end)).expect("stored ranges are valid and not empty")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, len: u64) -> GuestRange {
        GuestRange::new(Pfn(start), Pages(len)).unwrap()
    }

    #[test]
    fn neighbours_merge() {
        let mut set = RangeSet::new();
        set.insert(range(10, 5));
        set.insert(range(20, 5));
        assert_eq!(set.len(), 2);
        assert_eq!(set.insert(range(15, 5)), Pages(5));
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(10, 15)]);
    }

    proptest! {
        /// The set equals a plain set of page numbers, in the fewest ranges.
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..200, 1u64..40), 1..60)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (insert, start, len) in ops {
                let before = model.len();
                if insert {
                    model.extend(start..start + len);
                    let added = set.insert(range(start, len));
                    prop_assert_eq!(added.0 as usize, model.len() - before);
                } else {
                    model.retain(|p| *p < start || *p >= start + len);
                    let removed = set.remove(range(start, len));
                    prop_assert_eq!(removed.0 as usize, before - model.len());
                }
                prop_assert_eq!(set.pages().0 as usize, model.len());
                let pages: Vec<u64> =
                    set.iter().flat_map(|r| r.start().0..r.end().0).collect();
                prop_assert!(pages.iter().eq(model.iter()));
                let gaps_between = set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.end() < b.start());
                prop_assert!(gaps_between);
                let probe = range(start, len);
                let cut: u64 = set.intersection(probe).map(|r| r.pages().0).sum();
                prop_assert_eq!(cut as usize, model.range(start..start + len).count());
                prop_assert_eq!(set.covers(probe), cut == len);
                prop_assert_eq!(set.contains(Pfn(start)), model.contains(&start));
            }
        }
    }
}
