// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that the guest gives up, pages that must stay, and memory of small pages.

use super::*;

#[test]
fn small_pages_come_and_go_with_their_holes() {
    let f = Fixture::with(8, 8, BackingKind::Small, Box::new(Lz4), Vec::new());
    for page in (0..f.pages()).step_by(3) {
        f.write(page, 4);
    }
    let before = f.resident();
    let report = f.park();
    assert_eq!((report.parked, report.stopped), (4, None));
    assert_eq!(f.resident(), 0);
    assert!(f.holds(3, 4));
    f.unpark();
    // A hole is not filled, also after it was read.
    assert_eq!(f.resident(), before);
    for page in 0..f.pages() {
        assert!(if page % 3 == 0 { f.holds(page, 4) } else { f.is_zero(page) }, "page {page}");
    }
    for round in 5..9 {
        f.write(1, round);
        f.park();
        assert!(f.holds(1, round) && f.is_zero(2));
    }
}

#[test]
fn discarded_pages_are_zero_wherever_they_were() {
    let f = Fixture::new(16, 16);
    f.fill(2);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    // A whole block, and parts of two.
    f.ram.discard(&[range(100, 50), f.block(3), range(1000, 100)]).unwrap();
    f.paging.validate().unwrap();
    assert_eq!(f.paging.stats().counters.blocks_dropped, 1);
    assert_eq!(f.paging.stats().absent_bytes, 14 * MIB - 150 * PAGE_SIZE);
    let gone =
        |p: u64| (100..150).contains(&p) || (1000..1100).contains(&p) || (1536..2048).contains(&p);
    f.unpark();
    // What was given up is not resident again.
    assert_eq!(f.resident(), 16 * MIB - (50 + 100 + 512) * PAGE_SIZE);
    for page in 0..f.pages() {
        assert!(if gone(page) { f.is_zero(page) } else { f.holds(page, 2) }, "page {page}");
    }
    // And so again, with what is in small pages left where it is.
    let report = f.park();
    assert!(report.left.small > 0, "{report:?}");
    assert!(f.is_zero(120) && f.holds(200, 2));
    // At request blocks with holes leave as well, and come back with them.
    let report = f.park_as(&with_holes());
    assert_eq!((report.left.small, f.resident()), (0, 0), "{report:?}");
    f.unpark();
    assert_eq!(f.resident(), 16 * MIB - (50 + 100 + 512) * PAGE_SIZE);
    for page in 0..f.pages() {
        assert!(if gone(page) { f.is_zero(page) } else { f.holds(page, 2) }, "page {page}");
    }
}

fn with_holes() -> ParkRequest {
    ParkRequest { with_holes: true, ..ParkRequest::default() }
}

/// The balloon forbids huge pages where it has pages of a block.
#[test]
fn a_block_with_pages_in_the_balloon_stays() {
    let f = Fixture::new(8, 8);
    f.fill(2);
    if !f.has_huge_pages() {
        return;
    }
    f.ram.allow_huge(f.block(1), false).unwrap();
    f.ram.discard(&[range(600, 50)]).unwrap();
    let report = f.park_as(&with_holes());
    assert_eq!((report.parked, report.left.small), (3, 1), "{report:?}");
    assert_eq!(f.resident(), 2 * MIB - 50 * PAGE_SIZE);
    assert!(f.is_zero(600) && f.holds(599, 2) && f.holds(650, 2));
}

#[test]
fn pinned_pages_stay() {
    let f = Fixture::new(8, 8);
    f.fill(3);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    f.paging.pin(range(600, 1)).unwrap();
    assert_eq!(f.resident(), 2 * MIB);
    assert_eq!(f.park().left.pinned, 1);
    f.paging.unpin(range(600, 1));
    assert_eq!(f.park().parked, 1);
    f.check(3);
}

#[test]
fn a_hole_that_the_guest_made_is_zero_after_parking_around_it() {
    let f = Fixture::new(8, 8);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    assert!(f.holds(0, 1));
    // Present, and discarded whole: it is not resident, so it stays out of the next park.
    f.ram.discard(&[f.block(0)]).unwrap();
    assert_eq!(f.park().parked, 0);
    assert!(f.is_zero(17));
    f.paging.validate().unwrap();
}
