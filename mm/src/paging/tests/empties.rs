// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Empty blocks of a parked guest.

use super::*;

/// A fixture of eight blocks, of which the first two have contents, parked.
fn parked() -> Option<Fixture> {
    let f = Fixture::new(16, 16);
    (0..2 * PAGES_PER_BLOCK).for_each(|page| f.write(page, 1));
    if !f.has_huge_pages() {
        return None;
    }
    assert_eq!(f.park().parked, 2);
    assert_eq!((f.resident(), f.paging.stats().absent_bytes), (0, 4 * MIB));
    Some(f)
}

#[test]
fn an_access_to_an_empty_block_costs_a_page() {
    let Some(f) = parked() else { return };
    for block in 2..8 {
        let page = block * PAGES_PER_BLOCK + 7;
        assert!(f.is_zero(page));
        f.write(page, 2);
    }
    f.paging.settle();
    f.paging.validate().unwrap();
    assert_eq!((f.resident(), f.paging.stats().absent_bytes), (6 * PAGE_SIZE, 4 * MIB));
    // They leave as other pages do.
    assert_eq!(f.park().parked, 6);
    assert_eq!((f.resident(), f.paging.stats().absent_bytes), (0, 4 * MIB + 6 * PAGE_SIZE));
    f.unpark();
    assert_eq!(f.paging.stats().absent_bytes, 0);
    assert_eq!(f.paging.stats().gone_bytes, 0);
    for page in 0..f.pages() {
        match (page / PAGES_PER_BLOCK, page % PAGES_PER_BLOCK) {
            (0 | 1, _) => assert!(f.holds(page, 1), "page {page}"),
            (_, 7) => assert!(f.holds(page, 2), "page {page}"),
            _ => assert!(f.is_zero(page), "page {page}"),
        }
    }
}

/// Free page reporting discards what is empty already.
#[test]
fn discards_leave_an_empty_block_as_it_is() {
    let Some(f) = parked() else { return };
    f.ram.discard(&[f.block(2), f.block(3), range(4 * PAGES_PER_BLOCK, 100)]).unwrap();
    f.paging.validate().unwrap();
    assert_eq!(f.paging.stats().counters.blocks_dropped, 0);
    for block in 2..5 {
        f.write(block * PAGES_PER_BLOCK + 9, 3);
    }
    f.paging.settle();
    assert_eq!(f.resident(), 3 * PAGE_SIZE);
    // A page that came back is gone too, and its block empty as before.
    f.ram.discard(&[f.block(3)]).unwrap();
    assert_eq!(f.resident(), 2 * PAGE_SIZE);
    let page = |block| block * PAGES_PER_BLOCK + 9;
    assert!(f.is_zero(page(3)) && f.holds(page(2), 3) && f.holds(page(4), 3));
    // So is a block whose contents are discarded while it is parked.
    f.ram.discard(&[f.block(1)]).unwrap();
    assert_eq!(f.paging.stats().counters.blocks_dropped, 1);
    let before = f.resident();
    f.write(page(1), 4);
    f.paging.settle();
    assert_eq!(f.resident(), before + PAGE_SIZE);
    assert!(f.holds(page(1), 4) && f.is_zero(page(1) + 1) && f.holds(page(0), 1));
}

#[test]
fn an_empty_block_that_is_used_becomes_huge_at_once() {
    let Some(f) = parked() else { return };
    // Neighbours, one after the other: the guest fills the block.
    (0..PAGES_PER_BLOCK).for_each(|page| f.write(3 * PAGES_PER_BLOCK + page, 5));
    f.paging.settle();
    assert!(f.paging.stats().faults.count < 64);
    (0..PAGES_PER_BLOCK).for_each(|page| assert!(f.holds(3 * PAGES_PER_BLOCK + page, 5)));
    // Allocated on request, it is huge without a fault.
    let faults = f.paging.stats().faults.count;
    f.ram.populate(f.block(5)).unwrap();
    let found = f.ram.residency_of(f.block(5)).unwrap();
    assert_eq!((found.resident, found.huge), (Bytes(2 * MIB), Some(Bytes(2 * MIB))));
    assert_eq!(f.paging.stats().faults.count, faults);
    f.unpark();
    f.write(6 * PAGES_PER_BLOCK, 1);
    assert_eq!(f.ram.residency_of(f.block(6)).unwrap().resident, Bytes(2 * MIB));
    f.paging.validate().unwrap();
}

/// The guest has read it before: its page table has the shared zero page, and a write to that is no
/// fault for the pager. The memory is not lost, and leaves with the next park.
#[test]
fn memory_behind_a_mapping_of_the_zero_page_is_parked_too() {
    let f = Fixture::new(8, 8);
    f.write(0, 1);
    assert!(f.is_zero(PAGES_PER_BLOCK + 5));
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    f.write(PAGES_PER_BLOCK + 5, 2);
    assert!(f.holds(PAGES_PER_BLOCK + 5, 2));
    f.park_as(&ParkRequest { with_holes: true, ..ParkRequest::default() });
    assert_eq!(f.resident(), 0);
    assert!(f.holds(PAGES_PER_BLOCK + 5, 2) && f.holds(0, 1) && f.is_zero(PAGES_PER_BLOCK + 6));
    f.paging.validate().unwrap();
}

/// Blocks are guarded and released while threads fill, check and give up memory.
#[test]
fn nothing_is_lost_while_blocks_are_guarded() {
    const ROUNDS: u64 = 40;
    let f = Fixture::new(16, 16);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (f, stop) = (&f, &stop);
            scope.spawn(move || {
                let first = thread * 2 * PAGES_PER_BLOCK;
                let mut round = 1;
                while !stop.load(Ordering::Relaxed) {
                    let pages = || (0..2 * PAGES_PER_BLOCK).step_by(3 + thread as usize * 30);
                    pages().for_each(|page| f.write(first + page, round));
                    pages().for_each(|page| assert!(f.holds(first + page, round), "page {page}"));
                    f.ram.discard(&[range(first, 2 * PAGES_PER_BLOCK)]).unwrap();
                    pages().for_each(|page| assert!(f.is_zero(first + page), "page {page}"));
                    round += 1;
                }
            });
        }
        for round in 0..ROUNDS {
            let with_holes = round % 2 == 0;
            let request = ParkRequest { with_holes, ..ParkRequest::default() };
            assert_eq!(f.paging.park(&request, &NEVER, &quiet).stopped, None);
            if round % 3 == 0 {
                f.paging.unpark(None, &NEVER, &quiet);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    f.paging.settle();
    f.paging.validate().unwrap();
}
