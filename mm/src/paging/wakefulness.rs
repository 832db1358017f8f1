// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether whole blocks serve a parked guest. A sleeping one accesses a page now and then, for its
//! timers; one that works accesses page after page. One that passes over its memory accesses
//! neighbours: it will want the rest of the block, and the next block from its edge on.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::units::PAGES_PER_BLOCK;

/// Accesses of a sleeping guest come at most this often, for long.
const INTERVAL: Duration = Duration::from_millis(50);
/// Accesses that may come at once.
const BURST: u32 = 1024;
/// Intervals without an access after which a guest that was awake sleeps.
const QUIET: u32 = 20;
/// Accesses to neighbours, one after the other, that make a scan.
const SCAN: u32 = 8;
/// Accesses that a block of a scan counts for.
const SCANNED: u32 = 32;
/// Other accesses, such as the kernel's own, after which a scan is over.
const STRAYS: u32 = 8;

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
    /// Notes an access to a page of guest memory; whether its block should come back whole.
    pub(super) fn accessed(&mut self, now: Instant, page: u64) -> bool {
        let scans = self.is_scan(page);
        let paced = self.paced.map_or(now, |paced| paced.max(now));
        let paced = paced + INTERVAL * if scans { SCANNED } else { 1 };
        self.paced = Some(paced.min(now + INTERVAL * (BURST + QUIET)));
        scans || paced - now > INTERVAL * BURST
    }

    /// Notes where an access was; whether the guest passes over its memory.
    fn is_scan(&mut self, page: u64) -> bool {
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
        if pages.contains(&self.near.start) {
            self.near = pages;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with no neighbour among the others.
    fn far(turn: u32) -> u64 {
        u64::from(turn) * 7
    }

    #[test]
    fn few_accesses_or_slow_ones_come_from_a_sleeping_guest() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        for turn in 0..BURST {
            assert!(!guest.accessed(start, far(turn)));
        }
        let mut guest = Wakefulness::default();
        for turn in 0..1000 {
            assert!(!guest.accessed(start + INTERVAL * turn, far(turn)));
        }
    }

    #[test]
    fn many_accesses_wake_it_until_it_was_quiet() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        let awake = (0..2 * BURST).filter(|&turn| guest.accessed(start, far(turn))).count();
        assert_eq!(awake, BURST as usize);
        assert!(guest.accessed(start + INTERVAL * (QUIET - 1), 3));
        assert!(!guest.accessed(start + INTERVAL * 3 * QUIET, 1));
    }

    /// Blocks may take longer to come back than a sleeping guest's pause is.
    #[test]
    fn slow_answers_are_no_pauses() {
        let mut now = Instant::now();
        let mut guest = Wakefulness::default();
        for access in 0..2 * BURST {
            assert_eq!(guest.accessed(now, far(access)), access >= BURST);
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
                let scans = guest.accessed(start, at(n));
                assert_eq!(scans, n + 1 == u64::from(SCAN));
                let back = if scans { 512..1024 } else { at(n)..at(n) + 1 };
                guest.answered(Duration::ZERO, back);
            }
            // The neighbour of the block that came back.
            let next = if down { 511 } else { 1024 };
            assert!(guest.accessed(start, next));
            guest.answered(Duration::ZERO, next / 512 * 512..next / 512 * 512 + 512);
            assert!(!guest.accessed(start, 5000));
        }
    }

    /// The blocks of one area of a program may lie in any order, and the kernel's own accesses come in
    /// between.
    #[test]
    fn a_scan_goes_on_at_the_edge_of_any_block() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        // Without a scan an edge is a page like others.
        assert!(!guest.accessed(start, 512 * 3));
        let first = 512 * 9 + 40;
        assert_eq!((0..u64::from(SCAN)).filter(|n| guest.accessed(start, first + n)).count(), 1);
        for (block, page) in [(4, 0), (7, 511), (2, 0)] {
            for stray in 1..u64::from(STRAYS) {
                assert!(!guest.accessed(start, 512 * 20 + stray * 9));
            }
            assert!(guest.accessed(start, 512 * block + page));
        }
        for stray in 1..=u64::from(STRAYS) {
            assert!(!guest.accessed(start, 512 * 30 + stray * 9));
        }
        assert!(!guest.accessed(start, 512));
    }
}
