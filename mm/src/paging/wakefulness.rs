// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What serves a parked guest: single pages, a few at once, or whole blocks. A sleeping one accesses a
//! page now and then, for its timers; one that works accesses page after page. One that passes over its
//! memory accesses neighbours: it will want the rest of the block, and the next block from its edge on.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::units::PAGES_PER_BLOCK;

/// Accesses of a sleeping guest come at most this often, for long.
const INTERVAL: Duration = Duration::from_millis(50);
/// Accesses that may come at once.
const BURST: u32 = 1024;
/// Accesses at once after which more pages come than the one that is accessed.
const FLURRY: u32 = 16;
/// Intervals without an access after which a guest that was awake sleeps.
const QUIET: u32 = 20;
/// Accesses to neighbours, one after the other, that make a scan.
const SCAN: u32 = 8;
/// Accesses that a block of a scan counts for.
const SCANNED: u32 = 32;
/// Other accesses, such as the kernel's own, after which a scan is over.
const STRAYS: u32 = 8;

/// What comes back on an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// The page alone.
    Page,
    /// The page, and those that are likely to be needed with it.
    Pages,
    /// Its block from the page on, if a part of it is there already; otherwise all of it.
    Up,
    /// The same, down to the page.
    Down,
    /// Its block.
    Block,
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
}

impl Wakefulness {
    /// Notes an access to a page of guest memory; returns what should come back.
    pub(super) fn accessed(&mut self, now: Instant, page: u64) -> Portion {
        let scans = self.is_scan(page);
        let paced = self.paced.map_or(now, |paced| paced.max(now));
        let paced = paced + INTERVAL * if scans { SCANNED } else { 1 };
        self.paced = Some(paced.min(now + INTERVAL * (BURST + QUIET)));
        let ahead = paced - now;
        if scans {
            self.direction(page)
        } else if ahead > INTERVAL * BURST {
            Portion::Block
        } else if ahead > INTERVAL * FLURRY {
            Portion::Pages
        } else {
            Portion::Page
        }
    }

    /// Where a guest that passes over its memory goes on after `page`.
    pub(super) fn direction(&self, page: u64) -> Portion {
        let down = match self.near == (page..page + 1) {
            // At the edge of another block.
            true => !page.is_multiple_of(PAGES_PER_BLOCK),
            false => self.near.start == page,
        };
        if down { Portion::Down } else { Portion::Up }
    }

    /// Notes where an access was; whether the guest passes over its memory.
    pub(super) fn is_scan(&mut self, page: u64) -> bool {
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
        let scans = self.in_a_row >= SCAN;
        self.strays = match (scans, self.strays) {
            (true, _) => Some(0),
            (false, strays) => strays.map(|count| count + 1).filter(|&count| count < STRAYS),
        };
        scans
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
        /// Whether the block comes back.
        fn wakes(&mut self, now: Instant, page: u64) -> bool {
            !matches!(self.accessed(now, page), Portion::Page | Portion::Pages)
        }
    }

    /// A page with no neighbour among the others.
    fn far(turn: u32) -> u64 {
        u64::from(turn) * 97
    }

    #[test]
    fn few_accesses_or_slow_ones_come_from_a_sleeping_guest() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        for turn in 0..BURST {
            assert!(!guest.wakes(start, far(turn)));
        }
        let mut guest = Wakefulness::default();
        for turn in 0..1000 {
            assert!(!guest.wakes(start + INTERVAL * turn, far(turn)));
        }
    }

    #[test]
    fn a_flurry_brings_more_than_a_page() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        let portions: Vec<_> = (0..BURST).map(|turn| guest.accessed(start, far(turn))).collect();
        let (alone, more) = portions.split_at(FLURRY as usize);
        assert!(alone.iter().all(|&portion| portion == Portion::Page));
        assert!(more.iter().all(|&portion| portion == Portion::Pages));
        assert_eq!(guest.accessed(start + INTERVAL * BURST, 1), Portion::Page);
    }

    #[test]
    fn many_accesses_wake_it_until_it_was_quiet() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        let awake = (0..2 * BURST).filter(|&turn| guest.wakes(start, far(turn))).count();
        assert_eq!(awake, BURST as usize);
        assert!(guest.wakes(start + INTERVAL * (QUIET - 1), 3));
        assert!(!guest.wakes(start + INTERVAL * 3 * QUIET, 1));
    }

    /// Blocks may take longer to come back than a sleeping guest's pause is.
    #[test]
    fn slow_answers_are_no_pauses() {
        let mut now = Instant::now();
        let mut guest = Wakefulness::default();
        for access in 0..2 * BURST {
            assert_eq!(guest.wakes(now, far(access)), access >= BURST);
            now += INTERVAL * 2;
            guest.answered(INTERVAL * 2, 0..1);
        }
    }

    #[test]
    fn a_scan_gets_blocks_from_the_next_one_on() {
        for (down, first) in [(false, 512), (true, 1023)] {
            let start = Instant::now();
            let mut guest = Wakefulness::default();
            let at = |n: u64| if down { first - n } else { first + n };
            for n in 0..u64::from(SCAN) {
                let scans = guest.wakes(start, at(n));
                assert_eq!(scans, n + 1 == u64::from(SCAN));
                let back = if scans { 512..1024 } else { at(n)..at(n) + 1 };
                guest.answered(Duration::ZERO, back);
            }
            // The neighbour of the block that came back.
            let next = if down { 511 } else { 1024 };
            assert!(guest.wakes(start, next));
            guest.answered(Duration::ZERO, next / 512 * 512..next / 512 * 512 + 512);
            assert!(!guest.wakes(start, 5000));
        }
    }

    #[test]
    fn a_scan_has_a_direction() {
        let start = Instant::now();
        for (down, expected) in [(false, Portion::Up), (true, Portion::Down)] {
            let mut guest = Wakefulness::default();
            let at = |n: u64| if down { 700 - n } else { 700 + n };
            let last = (0..u64::from(SCAN)).map(|n| guest.accessed(start, at(n))).last();
            assert_eq!(last, Some(expected));
            assert_eq!(guest.accessed(start, 512 * 9), Portion::Up);
            assert_eq!(guest.accessed(start, 512 * 8 + 511), Portion::Down);
        }
    }

    /// Neighbours that came along are not accessed.
    #[test]
    fn a_scan_that_gets_neighbours_along_is_one() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        let scans = (0..u64::from(SCAN)).filter(|n| {
            let scans = guest.wakes(start, 2 * n);
            guest.answered(Duration::ZERO, 2 * n..2 * n + 2);
            scans
        });
        assert_eq!(scans.collect::<Vec<_>>(), [u64::from(SCAN) - 1]);
    }

    /// The blocks of one area of a program may lie in any order, and the kernel's own accesses come in
    /// between.
    #[test]
    fn a_scan_goes_on_at_the_edge_of_any_block() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        // Without a scan an edge is a page like others.
        assert!(!guest.wakes(start, 512 * 3));
        let first = 512 * 9 + 40;
        assert_eq!((0..u64::from(SCAN)).filter(|n| guest.wakes(start, first + n)).count(), 1);
        for (block, page) in [(4, 0), (7, 511), (2, 0)] {
            for stray in 1..u64::from(STRAYS) {
                assert!(!guest.wakes(start, 512 * 20 + stray * 9));
            }
            assert!(guest.wakes(start, 512 * block + page));
        }
        for stray in 1..=u64::from(STRAYS) {
            assert!(!guest.wakes(start, 512 * 30 + stray * 9));
        }
        assert!(!guest.wakes(start, 512));
    }
}
