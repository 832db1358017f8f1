// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trials of blocks of which the guest uses a few pages.

use super::*;
use crate::paging::absence::FEW_PAGES;

/// A guest whose block 0 has come back from a trial, on its next trial; `None` without huge pages.
fn on_second_trial() -> Option<(Fixture, ColdTracker, OnTrial)> {
    let f = Fixture::new(4, 8);
    f.fill(1);
    if !f.has_huge_pages() {
        return None;
    }
    let mut tracker = f.paging.cold_tracker(Probation { at_once: 1, longest_pause: 1 });
    let first = f.paging.begin_trial(&mut tracker, 1, &RangeSet::new());
    assert_eq!(first.len(), 1);
    assert!(f.holds(0, 1));
    f.paging.settle();
    assert_eq!(f.paging.end_trial(&mut tracker, first, &NEVER).returned, 1);
    loop {
        let trial = f.paging.begin_trial(&mut tracker, 1, &RangeSet::new());
        if f.paging.absent_blocks() == [f.paging.engine.areas.block(0)] {
            return Some((f, tracker, trial));
        }
        let _ = f.paging.end_trial(&mut tracker, trial, &NEVER);
        f.unpark();
    }
}

#[test]
fn a_block_leaves_but_for_the_few_pages_that_are_used() {
    let Some((f, mut tracker, trial)) = on_second_trial() else { return };
    f.write(3, 2);
    f.write(300, 2);
    f.paging.settle();
    let stats = f.paging.stats();
    let counters = stats.counters;
    assert_eq!((counters.pages_returned, counters.pages_prefetched), (2, 2));
    assert_eq!(stats.staged_bytes, 2 * MIB);
    f.paging.validate().unwrap();
    let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
    assert_eq!((report.stored, report.returned, report.stopped), (1, 0, None));
    let (stats, away) = (f.paging.stats(), 2 * MIB - 4 * PAGE_SIZE);
    assert_eq!((stats.staged_bytes, stats.absent_bytes), (0, away));
    assert_eq!(f.resident(), 4 * MIB - away);
    // What is in place is not in the store.
    assert_eq!(stats.pool.store.orig_data_size, away);
    for page in 0..f.pages() {
        let version = if [3, 300].contains(&page) { 2 } else { 1 };
        assert!(f.holds(page, version), "page {page}");
    }
    f.unpark();
    assert_eq!((f.resident(), f.paging.stats().pool.store.orig_data_size), (4 * MIB, 0));
}

#[test]
fn a_block_that_is_used_comes_back_from_its_trial() {
    let Some((f, mut tracker, trial)) = on_second_trial() else { return };
    // A neighbour comes with each, and once that are many, a group.
    let used = FEW_PAGES as u64 / 2 + 3;
    (0..used).for_each(|nth| f.write(nth * 9, 2));
    f.paging.settle();
    let counters = f.paging.stats().counters;
    assert!(counters.pages_returned < used, "{counters:?}");
    let there = counters.pages_returned + counters.pages_prefetched;
    assert!(there > FEW_PAGES as u64 + 16 && there < PAGES_PER_BLOCK, "{counters:?}");
    assert_eq!(f.resident(), 2 * MIB + there * PAGE_SIZE);
    let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
    assert_eq!((report.stored, report.returned), (0, 1));
    assert_eq!((f.resident(), f.paging.stats().absent_bytes), (4 * MIB, 0));
    assert_eq!(f.paging.stats().pool.store.orig_data_size, 0);
    f.paging.validate().unwrap();
    for page in 0..f.pages() {
        let version = if page % 9 == 0 && page / 9 < used { 2 } else { 1 };
        assert!(f.holds(page, version), "page {page}");
    }
}

#[test]
fn a_guest_that_passes_over_a_block_on_trial_gets_all_of_it() {
    let Some((f, mut tracker, trial)) = on_second_trial() else { return };
    assert!((0..PAGES_PER_BLOCK).all(|page| f.holds(page, 1)));
    f.paging.settle();
    let counters = f.paging.stats().counters;
    assert!(counters.pages_returned < 32, "{counters:?}");
    assert_eq!((f.resident(), f.paging.stats().absent_bytes), (4 * MIB, 0));
    assert_eq!(f.paging.end_trial(&mut tracker, trial, &NEVER).returned, 1);
    f.paging.validate().unwrap();
    f.check(1);
}

#[test]
fn a_trial_that_ends_early_brings_all_of_the_block_back() {
    let Some((f, mut tracker, trial)) = on_second_trial() else { return };
    f.write(3, 2);
    let report = f.paging.end_trial(&mut tracker, trial, &AtomicBool::new(true));
    assert_eq!((report.stored, report.kept), (0, 1));
    assert_eq!(report.stopped.as_deref(), Some("cancelled"));
    let stats = f.paging.stats();
    assert_eq!((f.resident(), stats.absent_bytes, stats.staged_bytes), (4 * MIB, 0, 0));
    assert!((0..f.pages()).all(|page| f.holds(page, if page == 3 { 2 } else { 1 })));
    f.paging.validate().unwrap();
}

#[test]
fn pages_that_are_given_up_on_trial_read_as_zero() {
    let Some((f, mut tracker, trial)) = on_second_trial() else { return };
    f.write(3, 2);
    f.paging.settle();
    f.ram.discard(&[range(2, 8)]).unwrap();
    let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
    assert_eq!((report.stored, report.stopped), (1, None));
    assert_eq!(f.paging.stats().pool.store.orig_data_size, 2 * MIB - 8 * PAGE_SIZE);
    assert!((0..f.pages()).all(|page| match page {
        2..10 => f.is_zero(page),
        _ => f.holds(page, 1),
    }));
    f.paging.validate().unwrap();
}

#[test]
fn a_store_that_is_full_leaves_the_block_in_place() {
    let f = Fixture::new(4, 1);
    // Few bits in common: two blocks do not fit into the pool.
    f.fill_with_words();
    if !f.has_huge_pages() {
        return;
    }
    let mut tracker = f.paging.cold_tracker(Probation { at_once: 1, longest_pause: 1 });
    let touch = || f.ram.memory().read_obj::<u64>(GuestAddress(64)).unwrap();
    let mut full = 0;
    for _ in 0..8 {
        let trial = f.paging.begin_trial(&mut tracker, 1, &RangeSet::new());
        touch();
        f.paging.settle();
        full += u64::from(f.paging.end_trial(&mut tracker, trial, &NEVER).stopped.is_some());
        f.paging.validate().unwrap();
    }
    let stats = f.paging.stats();
    assert!(full > 0 && stats.counters.pages_returned > 0, "{stats:?}");
    assert_eq!(stats.staged_bytes, 0);
    f.check_words();
}
