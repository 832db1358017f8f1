// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything at once.

use super::*;

/// Threads write and check their own pages all the time, while everything is parked, unparked and
/// partly discarded around them.
#[test]
fn nothing_is_lost_under_a_busy_guest() {
    const THREADS: u64 = 3;
    let f = Fixture::new(24, 24);
    f.fill(0);
    if !f.has_huge_pages() {
        return;
    }
    // The last two blocks are the balloon's.
    let (own, ballooned) = (f.pages() - 2 * PAGES_PER_BLOCK, range(f.pages() - 1024, 1024));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (f, stop) = (&f, &stop);
            scope.spawn(move || {
                let mut versions = vec![0u64; own as usize];
                let mut x = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(thread + 1);
                while !stop.load(Ordering::Relaxed) {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    // The upper half is left alone for long enough to be stored.
                    let half = own / 2;
                    let page = if x >> 50 == 0 { half + x % half } else { x % half };
                    if page % THREADS == thread {
                        let version = &mut versions[page as usize];
                        assert!(f.holds(page, *version), "page {page} lost version {version}");
                        *version += 1;
                        f.write(page, *version);
                    }
                    if x & 0xff == 0 {
                        std::thread::yield_now();
                    }
                }
                for page in (thread..own).step_by(THREADS as usize) {
                    assert!(f.holds(page, versions[page as usize]), "page {page} at the end");
                }
            });
        }
        let mut x = 1u64;
        let mut tracker = f.paging.cold_tracker(Probation { at_once: 8, longest_pause: 1 });
        for round in 0..12 {
            for turn in 0..4 {
                let trial = f.paging.begin_trial(&mut tracker, 8, &RangeSet::new());
                std::thread::sleep(Duration::from_millis(turn));
                let _ = f.paging.end_trial(&mut tracker, trial, &NEVER);
            }
            f.paging.park(&ParkRequest::default(), &NEVER, &quiet);
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = ballooned.start().0 + (x >> 40) % 1000;
            f.ram.discard(&[range(start, 1 + (x >> 50) % 24)]).unwrap();
            if round % 3 == 0 {
                f.paging.unpark(Some(2), &NEVER, &quiet);
                let block = f.block(11);
                f.ram.populate(block).unwrap();
                let _ = f.ram.collapse(block);
            }
            f.paging.compact();
        }
        stop.store(true, Ordering::Relaxed);
    });
    f.unpark();
    assert_eq!(f.losses.load(Ordering::Relaxed), 0);
    let stats = f.paging.stats();
    assert_eq!(
        (stats.absent_bytes, stats.staged_bytes, stats.pool.store.orig_data_size),
        (0, 0, 0)
    );
    let counters = &stats.counters;
    assert!(counters.blocks_stored > 0 && counters.blocks_touched > 0, "{stats:?}");
    assert!(counters.pages_returned > 0, "{stats:?}");
}
