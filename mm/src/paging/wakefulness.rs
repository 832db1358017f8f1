// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much serves an access of a parked guest. A sleeping one accesses a page now and then, for its
//! timers; one that works accesses page after page. One that passes over its memory accesses neighbours:
//! it will want more of the block, and the next block from its edge on.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::units::PAGES_PER_BLOCK;

use super::staging::PAGES;

/// Accesses of a sleeping guest come at most this often, for long.
const INTERVAL: Duration = Duration::from_millis(50);
/// Accesses at once after which more pages come than the one that is accessed.
const FLURRY: u32 = 16;
/// Accesses at once after which the guest is busy: it needs much of what it needed the last time.
const BUSY: u32 = 256;
/// Accesses of a flurry that count, so that it is over after a minute at most.
const BURST: u32 = 1024;
/// Accesses to neighbours, one after the other, that make a scan.
const SCAN: u32 = 8;
/// Pages that a scan gets with its first access, and twice as many with each further one: most scans
/// are of small files.
const WINDOW: usize = 16;
/// Other accesses, such as the kernel's own, after which a scan is over.
const STRAYS: u32 = 8;

/// What comes back on an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// The page alone.
    Page,
    /// The page, and those that are likely to be needed with it.
    Pages,
    /// The same, with all that the guest used of its block the last time.
    Used,
    /// So many pages of its block, from the page on. With [`PAGES`] all of a block that is absent as a
    /// whole.
    Up(usize),
    /// The same, down to the page.
    Down(usize),
}

/// The recent accesses to absent memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Wakefulness {
    /// When all accesses so far would have come, at one an interval.
    paced: Option<Instant>,
    /// The pages that came back last, in a row.
    near: Range<u64>,
    /// Accesses to neighbours, one after the other.
    in_a_row: u32,
    /// Other accesses since the last one of a scan, while it may go on.
    strays: Option<u32>,
    /// Pages that the last access of a scan got.
    window: usize,
}

impl Wakefulness {
    /// Notes an access to a page of guest memory; returns what should come back.
    pub(super) fn accessed(&mut self, now: Instant, page: u64) -> Portion {
        let paced = self.paced.map_or(now, |paced| paced.max(now)) + INTERVAL;
        self.paced = Some(paced.min(now + INTERVAL * BURST));
        let at_once = |accesses| paced - now > INTERVAL * accesses;
        self.scan(page).unwrap_or(match (at_once(FLURRY), at_once(BUSY)) {
            (false, _) => Portion::Page,
            (true, false) => Portion::Pages,
            (true, true) => Portion::Used,
        })
    }

    /// Notes where an access was; what should come back if the guest passes over its memory.
    pub(super) fn scan(&mut self, page: u64) -> Option<Portion> {
        let is_near = page == self.near.end || page + 1 == self.near.start;
        // What is one area to a program lies in blocks in any order.
        let goes_on =
            self.strays.is_some() && [0, PAGES_PER_BLOCK - 1].contains(&(page % PAGES_PER_BLOCK));
        self.in_a_row = match (is_near, goes_on) {
            (true, _) => self.in_a_row.saturating_add(1),
            (false, true) => SCAN,
            (false, false) => 1,
        };
        self.near = match is_near {
            true => self.near.start.min(page)..self.near.end.max(page + 1),
            false => page..page + 1,
        };
        let Some(strays) = self.strays else {
            return (self.in_a_row >= SCAN).then(|| self.ahead(page, WINDOW));
        };
        if self.in_a_row >= SCAN {
            return Some(self.ahead(page, 2 * self.window));
        }
        self.strays = Some(strays + 1).filter(|&count| count < STRAYS);
        None
    }

    /// At most `most` pages where a guest that passes over its memory goes on after `page`.
    fn ahead(&mut self, page: u64, most: usize) -> Portion {
        self.strays = Some(0);
        self.window = most.min(PAGES);
        let down = match self.near == (page..page + 1) {
            // At the edge of another block.
            true => !page.is_multiple_of(PAGES_PER_BLOCK),
            false => self.near.start == page,
        };
        if down { Portion::Down(self.window) } else { Portion::Up(self.window) }
    }

    /// An access was answered, which took `time`: that is no quiet, as the guest waited. `pages`
    /// are there now.
    pub(super) fn answered(&mut self, time: Duration, pages: Range<u64>) {
        self.paced = self.paced.map(|paced| paced + time);
        if pages.start <= self.near.end && self.near.start <= pages.end {
            self.near = self.near.start.min(pages.start)..self.near.end.max(pages.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Wakefulness {
        /// Whether the guest passes over its memory.
        fn scans(&mut self, page: u64) -> bool {
            self.scan(page).is_some()
        }
    }

    /// A page with no neighbour among the others.
    fn far(turn: u32) -> u64 {
        u64::from(turn) * 97 + 1
    }

    #[test]
    fn slow_accesses_bring_a_page_each() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        for turn in 0..1000 {
            assert_eq!(guest.accessed(start + INTERVAL * turn, far(turn)), Portion::Page);
        }
    }

    #[test]
    fn a_flurry_brings_more_than_a_page_until_it_is_over() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        for turn in 0..2 * BURST {
            let expected = match turn {
                ..FLURRY => Portion::Page,
                FLURRY..BUSY => Portion::Pages,
                BUSY.. => Portion::Used,
            };
            assert_eq!(guest.accessed(start, far(turn)), expected);
        }
        for (left, expected) in
            [(BUSY, Portion::Used), (FLURRY, Portion::Pages), (FLURRY - 1, Portion::Page)]
        {
            let later = start + INTERVAL * (BURST - left);
            assert_eq!(guest.clone().accessed(later, 1), expected);
        }
    }

    /// Pages may take longer to come back than a sleeping guest's pause is.
    #[test]
    fn slow_answers_are_no_pauses() {
        let mut now = Instant::now();
        let mut guest = Wakefulness::default();
        for access in 0..2 * FLURRY {
            let more = guest.accessed(now, far(access)) == Portion::Pages;
            assert_eq!(more, access >= FLURRY);
            now += INTERVAL * 2;
            guest.answered(INTERVAL * 2, 0..1);
        }
    }

    #[test]
    fn a_scan_gets_more_each_time_and_then_whole_blocks() {
        for down in [false, true] {
            let mut guest = Wakefulness::default();
            // Pages in the order of the scan; it begins in the middle of a block.
            let page = |nth: u64| if down { 512 * 20 - 1 - nth } else { 512 * 20 + nth };
            let (mut next, mut got) = (200, Vec::new());
            while next < 512 * 5 {
                let most = match guest.scan(page(next)) {
                    None => 1,
                    Some(Portion::Up(most)) if !down => most as u64,
                    Some(Portion::Down(most)) if down => most as u64,
                    other => panic!("{other:?}"),
                };
                let left = 512 - next % 512;
                let (first, last) = (page(next), page(next + most.min(left) - 1));
                guest.answered(Duration::ZERO, first.min(last)..first.max(last) + 1);
                next += most.min(left);
                got.push(most);
            }
            assert_eq!(got, [1, 1, 1, 1, 1, 1, 1, 16, 32, 64, 128, 256, 512, 512, 512, 512]);
        }
    }

    #[test]
    fn a_scan_has_a_direction() {
        for down in [false, true] {
            let mut guest = Wakefulness::default();
            let at = |n: u64| if down { 700 - n } else { 700 + n };
            let last = (0..u64::from(SCAN)).filter_map(|n| guest.scan(at(n))).last();
            let expected = if down { Portion::Down(WINDOW) } else { Portion::Up(WINDOW) };
            assert_eq!(last, Some(expected));
            assert_eq!(guest.scan(512 * 9), Some(Portion::Up(2 * WINDOW)));
            assert_eq!(guest.scan(512 * 8 + 511), Some(Portion::Down(4 * WINDOW)));
        }
    }

    /// Neighbours that came along are not accessed.
    #[test]
    fn a_scan_that_gets_neighbours_along_is_one() {
        let mut guest = Wakefulness::default();
        let scans = (0..u64::from(SCAN)).filter(|n| {
            let scans = guest.scans(2 * n);
            guest.answered(Duration::ZERO, 2 * n..2 * n + 2);
            scans
        });
        assert_eq!(scans.collect::<Vec<_>>(), [u64::from(SCAN) - 1]);
    }

    /// The blocks of one area of a program may lie in any order, and the kernel's own accesses come in
    /// between.
    #[test]
    fn a_scan_goes_on_at_the_edge_of_any_block() {
        let mut guest = Wakefulness::default();
        // Without a scan an edge is a page like others.
        assert!(!guest.scans(512 * 3));
        let first = 512 * 9 + 40;
        assert_eq!((0..u64::from(SCAN)).filter(|n| guest.scans(first + n)).count(), 1);
        for (block, page) in [(4, 0), (7, 511), (2, 0)] {
            for stray in 1..u64::from(STRAYS) {
                assert!(!guest.scans(512 * 20 + stray * 9));
            }
            assert!(guest.scans(512 * block + page));
        }
        for stray in 1..=u64::from(STRAYS) {
            assert!(!guest.scans(512 * 30 + stray * 9));
        }
        assert!(!guest.scans(512));
        // The next one starts small.
        let again = (0..u64::from(SCAN)).find_map(|n| guest.scan(512 * 40 + n));
        assert_eq!(again, Some(Portion::Up(WINDOW)));
    }
}
