// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that is short of memory while a guest uses all of its own.

use super::*;

/// A host with `limit` of memory, of which guest memory is all that is used.
struct Limited {
    ram: Arc<GuestRam>,
    limit: Bytes,
    most: Arc<AtomicU64>,
}

impl RoomSource for Limited {
    fn room(&self) -> HostRoom {
        let used = self.ram.residency().unwrap().resident;
        self.most.fetch_max(used.0, Ordering::Relaxed);
        let room = self.limit.saturating_sub(used);
        HostRoom { before_short: room, before_full: room.saturating_add(Bytes(8 * MIB)) }
    }
}

/// A guest of `mib` on such a host.
pub(super) fn limited(mib: u64, limit_mib: u64) -> (Fixture, Arc<AtomicU64>) {
    let layout = MemoryLayout::new(Bytes(mib * MIB), Bytes(0)).unwrap();
    let ram = Arc::new(GuestRam::new(layout, BackingKind::Thp).unwrap());
    let most = Arc::new(AtomicU64::new(0));
    let (limit, seen) = (Bytes(limit_mib * MIB), Arc::clone(&most));
    let config = PagingConfig {
        pool_limit: Bytes(mib * MIB),
        max_mappings: 1 << 15,
        codec: Box::new(Lz4),
        second_codec: None,
        sources: Vec::new(),
        host: Some(Box::new(Limited { ram: Arc::clone(&ram), limit, most: seen })),
    };
    let losses = Arc::default();
    let paging = Paging::start(Arc::clone(&ram), config, Box::new(|_| ())).expect("run as root");
    (Fixture { ram, paging, losses }, most)
}

/// Threads that use one and a half times the host's memory: all go on, and the host's memory is
/// never exceeded.
#[test]
fn no_more_comes_back_than_the_host_has_room_for() {
    const LIMIT: u64 = 40;
    let (f, most) = limited(64, LIMIT);
    f.fill(0);
    if !f.has_huge_pages() {
        return;
    }
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    f.paging.set_on_shortage(Some(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    })));
    f.park();
    most.store(0, Ordering::Relaxed);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (f, done) = (&f, &done);
            scope.spawn(move || {
                for version in 0..2 {
                    for page in (thread..f.pages()).step_by(2) {
                        assert!(f.holds(page, version), "page {page} lost version {version}");
                        f.write(page, version + 1);
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut hand = ReliefHand::default();
        while done.load(Ordering::Relaxed) < 2 {
            // Not before the first report: relief that is always ahead of the threads needs none.
            if told.load(Ordering::Relaxed) > 0 && f.paging.is_short(false) {
                let report = f.paging.relieve(&mut hand, &RangeSet::new(), &NEVER);
                assert_eq!(report.stopped, None);
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let most = most.load(Ordering::Relaxed);
    assert!(most <= LIMIT * MIB, "{} MiB were used", most / MIB);
    let counters = f.paging.stats().counters;
    assert!(told.load(Ordering::Relaxed) > 0 && counters.pages_touched > 0, "{counters:?}");
    f.paging.validate().unwrap();
}

/// If no thread makes room, faults are still answered, page by page; `unpark` leaves the blocks for
/// which the host has no room.
#[test]
fn a_host_without_room_still_answers() {
    let (f, _) = limited(32, 2);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let report = f.unpark();
    assert_eq!((report.returned, report.left), (0, 16));
    assert!(f.holds(5, 1) && f.holds(1000, 1));
    assert_eq!(f.resident(), 2 * PAGE_SIZE);
    assert!(f.paging.stats().counters.faults_held >= 2);
}
