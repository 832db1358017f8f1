// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parking, and what comes back.

use super::*;

#[test]
fn parked_memory_is_gone_and_comes_back_by_touch() {
    let f = Fixture::new(32, 32);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    let report = f.park();
    assert_eq!((report.parked, report.stopped), (16, None));
    assert_eq!(f.resident(), 0);
    let stats = f.paging.stats();
    assert_eq!(stats.absent_bytes, 32 * MIB);
    assert_eq!(stats.runs, 1);
    assert!(stats.pool.store.mem_used_total < 8 * MIB, "{:?}", stats.pool.store);
    f.check(1);
    f.paging.settle();
    let after = f.paging.stats();
    assert_eq!((after.absent_bytes, after.runs, after.pool.store.orig_data_size), (0, 0, 0));
    // A few pages of each block, then the block.
    let counters = &after.counters;
    assert!(counters.blocks_touched <= 16 && counters.pages_touched <= 16 * 64, "{after:?}");
    f.paging.validate().unwrap();
}

#[test]
fn unpark_brings_everything_back_without_a_touch() {
    let f = Fixture::new(16, 16);
    f.fill(7);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let report = f.unpark();
    assert_eq!((report.returned, report.left, report.lost), (8, 0, 0));
    assert_eq!(f.resident(), 16 * MIB);
    assert_eq!(f.paging.stats().pool.store.mem_used_total, 0);
    f.check(7);
    assert_eq!(f.paging.stats().faults.count, 0);
}

#[test]
fn zero_pages_cost_nothing_and_a_floor_stays() {
    let f = Fixture::new(16, 16);
    f.ram.populate(range(0, f.pages())).unwrap();
    f.write(5000 % f.pages(), 1);
    if !f.has_huge_pages() {
        return;
    }
    let request = ParkRequest { floor: Bytes(4 * MIB), threads: Some(1), ..ParkRequest::default() };
    let seen = AtomicU64::new(0);
    let report = f.paging.park(&request, &NEVER, &|done, of| {
        assert!(done <= of);
        seen.fetch_max(done, Ordering::Relaxed);
    });
    assert_eq!((report.parked, report.kept), (6, 2));
    assert_eq!(seen.into_inner(), 6);
    assert_eq!(f.resident(), 4 * MIB);
    assert!(f.paging.stats().pool.store.orig_data_size <= PAGE_SIZE);
    assert!(f.holds(5000 % f.pages(), 1));
    assert!(f.is_zero(1));
}
