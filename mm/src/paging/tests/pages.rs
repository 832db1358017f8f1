// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Single pages that come back on access, and leave again.

use super::*;
use crate::paging::absence::MOST_PAGES;
use crate::units::PAGE_BYTES;

/// Words that do not compress, the same for each `seed`.
fn noise(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..PAGE_SIZE / 8).map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    });
    words.flat_map(u64::to_ne_bytes).collect()
}

#[test]
fn an_access_costs_a_page_and_not_a_block() {
    let f = Fixture::new(16, 16);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    for round in 1..4 {
        for block in 0..4 {
            let page = block * PAGES_PER_BLOCK + 3;
            assert!(f.holds(page, round), "round {round}, page {page}");
            f.write(page, round + 1);
        }
        f.paging.settle();
        assert_eq!(f.resident(), 4 * PAGE_SIZE);
        let stats = f.paging.stats();
        assert_eq!(stats.absent_bytes, 16 * MIB - 4 * PAGE_SIZE);
        assert_eq!((stats.counters.pages_touched, stats.counters.blocks_touched), (round * 4, 0));
        // What came back leaves again, with what was written to it.
        assert_eq!(f.park().parked, 4);
        assert_eq!((f.resident(), f.paging.stats().absent_bytes), (0, 16 * MIB));
        assert_eq!(f.paging.stats().counters.pages_stored, round * 4);
    }
    for page in 0..f.pages() {
        let written = page % PAGES_PER_BLOCK == 3 && page < 4 * PAGES_PER_BLOCK;
        let version = if written { 4 } else { 1 };
        assert!(f.holds(page, version), "page {page}");
    }
}

/// Pages that a flurry of accesses needed come back together the next time.
#[test]
fn pages_that_were_used_together_come_back_together() {
    let mut tries = Vec::new();
    // On a host that is too busy for a flurry all pages come alone.
    while tries.len() < 10 {
        let Some((first, neighbours, again)) = use_together() else { return };
        // The first few of a flurry come alone.
        if (first, neighbours) == (128, 128 - 16) && again < 32 {
            return;
        }
        tries.push((first, neighbours, again));
    }
    panic!("{tries:?}");
}

/// Accesses pages in a flurry, parks and accesses them again: how many accesses that took, how many
/// neighbours came along, and how many accesses it took then. `None` without huge pages.
fn use_together() -> Option<(u64, u64, u64)> {
    let f = Fixture::new(16, 16);
    f.fill(1);
    if !f.has_huge_pages() {
        return None;
    }
    f.park();
    let touch = || {
        let before = f.paging.stats().counters;
        // None are neighbours, and no block gets many.
        let touched = (0..128).map(|nth| nth % 8 * PAGES_PER_BLOCK + nth / 8 * 24);
        touched.for_each(|page| assert!(f.holds(page, 1), "page {page}"));
        f.paging.settle();
        let after = f.paging.stats().counters;
        assert_eq!(after.blocks_touched, 0);
        let spared = after.pages_prefetched - before.pages_prefetched;
        (after.pages_touched - before.pages_touched, spared)
    };
    let (first, neighbours) = touch();
    assert_eq!(f.resident(), (first + neighbours) * PAGE_SIZE);
    f.park();
    let (again, _) = touch();
    f.unpark();
    f.check(1);
    Some((first, neighbours, again))
}

/// If they were many, then only to a busy guest; also if the whole block came back in between.
#[test]
fn many_pages_that_were_used_come_back_to_a_busy_guest() {
    let f = Fixture::new(32, 32);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    // A tenth of each block.
    let touch = || {
        f.park();
        let before = f.paging.stats().counters;
        let touched = (0..16).flat_map(|block| (0..50).map(move |nth| (block, nth * 6)));
        touched.for_each(|(block, page)| assert!(f.holds(block * PAGES_PER_BLOCK + page, 1)));
        f.paging.settle();
        let after = f.paging.stats().counters;
        assert_eq!(after.blocks_touched, 0);
        after.pages_touched - before.pages_touched
    };
    let first = touch();
    assert!(first > 600, "{first} accesses");
    // A guest that is too slow for a flurry, on a busy host, gets single pages.
    for unparked in [false, true] {
        let again = (0..10).map(|_| {
            if unparked {
                f.unpark();
            }
            touch()
        });
        let again: Vec<_> = again.take_while(|&count| count >= first / 2).collect();
        assert!(again.len() < 10, "{again:?} accesses after {first}, unparked: {unparked}");
    }
    f.unpark();
    f.check(1);
}

#[test]
fn a_block_that_is_used_comes_back_and_is_huge_again() {
    let f = Fixture::new(4, 4);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let mut touched = 0;
    while f.paging.stats().counters.blocks_touched == 0 {
        assert!(f.holds(touched * 5 % PAGES_PER_BLOCK, 1));
        // The page is there before the rest of its block is.
        f.paging.settle();
        touched += 1;
    }
    // The other block is still away.
    assert_eq!(f.paging.stats().absent_bytes, 2 * MIB);
    assert!((17..MOST_PAGES as u64).contains(&touched), "{touched}");
    assert!(becomes_huge(&f, 2 * MIB), "{:?}", f.ram.residency());
    f.check(1);
}

/// A page that was zero when it was parked is no hole afterwards, which would keep its block small.
#[test]
fn a_block_with_zero_pages_is_huge_again() {
    let f = Fixture::new(2, 2);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.ram.memory().write_slice(&vec![0; 100 * PAGE_BYTES], GuestAddress(200 * PAGE_SIZE)).unwrap();
    f.park();
    for page in 0..f.pages() {
        assert!(if (200..300).contains(&page) { f.is_zero(page) } else { f.holds(page, 1) });
    }
    assert!(becomes_huge(&f, 2 * MIB), "{:?}", f.ram.residency());
}

/// Whether so much memory is in huge pages after a while: the pager does that when it is idle.
fn becomes_huge(f: &Fixture, bytes: u64) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        f.ram.residency().unwrap().huge == Some(Bytes(bytes))
    })
}

#[test]
fn pages_that_came_back_are_discarded_pinned_and_unparked_as_others_are() {
    let f = Fixture::new(8, 8);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    // One after the other they would bring their block back.
    (100..110).step_by(2).chain((101..110).step_by(2)).for_each(|page| f.write(page, 2));
    f.write(600, 2);
    // Pages in place, and pages beside them that are not.
    f.ram.discard(&[range(105, 20)]).unwrap();
    assert_eq!(f.resident(), 6 * PAGE_SIZE);
    f.paging.validate().unwrap();
    let check = || {
        for page in 0..f.pages() {
            match page {
                105..125 => assert!(f.is_zero(page), "page {page}"),
                100..105 | 600 => assert!(f.holds(page, 2), "page {page}"),
                _ => assert!(f.holds(page, 1), "page {page}"),
            }
        }
    };
    f.park();
    assert_eq!(f.resident(), 0);
    assert!(f.is_zero(105) && f.is_zero(124) && f.holds(104, 2));
    f.paging.pin(range(600, 1)).unwrap();
    let report = f.park();
    assert_eq!((report.left.pinned, f.resident()), (1, 2 * MIB));
    f.paging.unpin(range(600, 1));
    check();
    f.park();
    assert!(f.holds(600, 2) && f.is_zero(110));
    f.unpark();
    check();
    assert_eq!(f.paging.stats().absent_bytes, 0);
}

/// The last pages at the source are discarded while the others are in place.
#[test]
fn a_block_whose_rest_is_discarded_is_present() {
    let f = Fixture::new(4, 4);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    f.write(0, 2);
    f.ram.discard(&[range(1, PAGES_PER_BLOCK - 1)]).unwrap();
    assert_eq!(f.paging.stats().absent_bytes, 2 * MIB);
    f.paging.validate().unwrap();
    assert!(f.holds(0, 2) && f.is_zero(1) && f.is_zero(511) && f.holds(512, 1));
}

#[test]
fn a_full_pool_leaves_pages_in_place() {
    let f = Fixture::new(16, 1);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let noisy = |page: u64| page % PAGES_PER_BLOCK < 31;
    for page in (0..f.pages()).filter(|&page| noisy(page)) {
        f.ram.memory().write_slice(&noise(page), GuestAddress(page * PAGE_SIZE)).unwrap();
    }
    let report = f.park();
    assert!(report.stopped.is_some_and(|why| why.contains("limit")));
    assert!(f.resident() > 0);
    for page in 0..f.pages() {
        let mut found = vec![0; PAGE_SIZE as usize];
        f.ram.memory().read_slice(&mut found, GuestAddress(page * PAGE_SIZE)).unwrap();
        let kept = if noisy(page) { found == noise(page) } else { found == Fixture::text(page, 1) };
        assert!(kept, "page {page}");
    }
}

/// Accesses while pages are on their way out are answered, with the right contents.
#[test]
fn pages_leave_and_come_back_at_the_same_time() {
    const STORED: u64 = 300;
    // Always so little room that only pages come back.
    let (f, _) = room::limited(8, 15);
    f.fill(0);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (f, stop) = (&f, &stop);
            scope.spawn(move || {
                let mut round = 0;
                let page = |block| block * PAGES_PER_BLOCK + thread * 5;
                while !stop.load(Ordering::Relaxed) {
                    for page in (0..4).map(page) {
                        assert!(f.holds(page, round), "page {page}, round {round}");
                        f.write(page, round + 1);
                    }
                    round += 1;
                }
                (0..4).map(page).for_each(|page| assert!(f.holds(page, round), "page {page}"));
            });
        }
        while f.paging.stats().counters.pages_stored < STORED {
            let report = f.paging.park(&ParkRequest::default(), &NEVER, &quiet);
            assert_eq!(report.stopped, None);
        }
        stop.store(true, Ordering::Relaxed);
    });
    for page in (0..f.pages()).filter(|page| !matches!(page % PAGES_PER_BLOCK, 0 | 5 | 10)) {
        assert!(f.holds(page, 0), "page {page}");
    }
    f.paging.settle();
    f.paging.validate().unwrap();
}

/// A move that stopped halfway has left pages in place. Those that did move go back, wherever the
/// others are.
#[test]
fn pages_go_back_around_those_that_never_left() {
    let f = Fixture::new(2, 2);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    (3..7).for_each(|page| assert!(f.holds(page, 1)));
    f.paging.settle();
    let engine = &f.paging.engine;
    let slot = engine.parts.take().unwrap();
    let (place, staged) = (engine.areas.host(0), engine.parts.range(slot));
    // SAFETY: both are mapped, this thread holds the slot, and no reference to either exists.
    unsafe { engine.transfer(staged.pages(4..6), place.pages(4..6)) }.unwrap();
    engine.move_all_back(0, place.pages(3..7), staged.pages(3..7));
    assert!(engine.parts.resident(slot).unwrap().is_empty());
    engine.parts.give_back(slot);
    (0..f.pages()).for_each(|page| assert!(f.holds(page, 1), "page {page}"));
    f.paging.validate().unwrap();
}
