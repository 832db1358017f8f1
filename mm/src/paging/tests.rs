// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pager on real memory, with threads in place of a guest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::backing::BackingKind;
use crate::layout::MemoryLayout;
use crate::store::{CodecError, Lz4, Page, Worker, Zstd};
use crate::units::{PAGE_SIZE, Pages, Pfn};

const MIB: u64 = 1 << 20;
static NEVER: AtomicBool = AtomicBool::new(false);

fn quiet(_: u64, _: u64) {}

/// A guest's memory of `mib` MiB, paged, with a pool of `pool_mib` MiB.
struct Fixture {
    ram: Arc<GuestRam>,
    paging: Paging,
    losses: Arc<AtomicU64>,
}

impl Fixture {
    fn new(mib: u64, pool_mib: u64) -> Self {
        Self::with(mib, pool_mib, BackingKind::Thp, Box::new(Lz4), Vec::new())
    }

    fn with(
        mib: u64,
        pool_mib: u64,
        kind: BackingKind,
        codec: Box<dyn Codec>,
        sources: Vec<Arc<dyn PageSource>>,
    ) -> Self {
        let layout = MemoryLayout::new(Bytes(mib * MIB), Bytes(0)).unwrap();
        let ram = Arc::new(GuestRam::new(layout, kind).unwrap());
        let second_codec: Option<Box<dyn Codec>> = Some(Box::new(Zstd { level: 3 }));
        let pool_limit = Bytes(pool_mib * MIB);
        let config = PagingConfig { pool_limit, codec, second_codec, sources };
        let losses = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&losses);
        let on_loss = Box::new(move |_: &SourceError| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let paging = Paging::start(Arc::clone(&ram), config, on_loss).expect("run as root");
        Self { ram, paging, losses }
    }

    fn pages(&self) -> u64 {
        self.ram.pages().0
    }

    /// Something that compresses and names page and version.
    fn text(page: u64, version: u64) -> Vec<u8> {
        let line = format!("page {page} version {version}; ");
        let mut text = line.repeat(PAGE_SIZE as usize / line.len() + 1).into_bytes();
        text.truncate(PAGE_SIZE as usize);
        text
    }

    fn write(&self, page: u64, version: u64) {
        let text = Self::text(page, version);
        self.ram.memory().write_slice(&text, GuestAddress(page * PAGE_SIZE)).unwrap();
    }

    fn fill(&self, version: u64) {
        (0..self.pages()).for_each(|page| self.write(page, version));
    }

    /// Whether `page` holds what [`write`](Self::write) put there.
    fn holds(&self, page: u64, version: u64) -> bool {
        let mut found = vec![0; PAGE_SIZE as usize];
        self.ram.memory().read_slice(&mut found, GuestAddress(page * PAGE_SIZE)).unwrap();
        found == Self::text(page, version)
    }

    fn is_zero(&self, page: u64) -> bool {
        let mut found = vec![1; PAGE_SIZE as usize];
        self.ram.memory().read_slice(&mut found, GuestAddress(page * PAGE_SIZE)).unwrap();
        found == [0; PAGE_SIZE as usize]
    }

    fn check(&self, version: u64) {
        let wrong: Vec<u64> = (0..self.pages()).filter(|&p| !self.holds(p, version)).collect();
        assert!(wrong.is_empty(), "{} pages are wrong, first {:?}", wrong.len(), wrong.first());
    }

    fn resident(&self) -> u64 {
        self.ram.residency().unwrap().resident.0
    }

    fn park(&self) -> ParkReport {
        self.paging.settle();
        let report = self.paging.park(&ParkRequest::default(), &NEVER, &quiet);
        self.paging.validate().unwrap();
        report
    }

    fn unpark(&self) -> UnparkReport {
        let report = self.paging.unpark(None, &NEVER, &quiet);
        self.paging.validate().unwrap();
        report
    }

    fn block(&self, nth: u64) -> GuestRange {
        range(nth * PAGES_PER_BLOCK, PAGES_PER_BLOCK)
    }

    /// Whether this host gives huge pages now; without, blocks stay.
    fn has_huge_pages(&self) -> bool {
        let found = self.ram.residency().unwrap();
        let huge = found.huge == Some(found.resident);
        if !huge {
            eprintln!("not run: this host gives no huge pages now: {found:?}");
        }
        huge
    }
}

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}

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
    // Block by block, and each a huge page again.
    assert!(after.faults.count <= 16 && after.counters.blocks_touched <= 16, "{after:?}");
    assert_eq!(f.ram.residency().unwrap().huge, Some(Bytes(32 * MIB)));
    f.paging.validate().unwrap();
}

#[test]
fn what_stays_away_is_compressed_once_more_and_comes_back_unharmed() {
    let f = Fixture::new(16, 16);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let before = f.paging.stats().pool.store.compr_data_size;
    assert_eq!(f.paging.repackable(Duration::from_secs(3600)), 0);
    assert_eq!(f.paging.repackable(Duration::ZERO), 8);
    let some = f.paging.repack(3, Duration::ZERO, &NEVER);
    assert_eq!((some.blocks, some.stopped), (3, None));
    assert!(some.saved > Bytes(0));
    // A block is repacked once; one that is back is not.
    assert!(f.holds(7 * PAGES_PER_BLOCK, 1));
    f.paging.settle();
    let rest = f.paging.repack(usize::MAX, Duration::ZERO, &NEVER);
    assert_eq!(rest.blocks, 4);
    assert_eq!(f.paging.repackable(Duration::ZERO), 0);
    assert!(f.paging.stats().pool.store.compr_data_size < before);
    f.check(1);
    f.paging.validate().unwrap();
    f.paging.settle();
    assert_eq!(f.paging.stats().pool.store.mem_used_total, 0);
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
    let request = ParkRequest { floor: Bytes(4 * MIB), threads: Some(1), exclude: RangeSet::new() };
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
    assert_eq!(f.paging.stats().absent_bytes, 14 * MIB);
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
fn a_full_pool_stops_parking_and_loses_nothing() {
    let f = Fixture::new(16, 1);
    // Words in no order compress, but not much.
    let mut x = 1u64;
    for word in 0..16 * MIB / 8 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f.ram.memory().write_obj(x >> 34, GuestAddress(word * 8)).unwrap();
    }
    if !f.has_huge_pages() {
        return;
    }
    let report = f.park();
    let why = report.stopped.expect("the pool is too small");
    assert!(why.contains("limit"), "{why}");
    let stats = f.paging.stats();
    assert_eq!(f.resident() + stats.absent_bytes, 16 * MIB);
    assert_eq!(stats.staged_bytes, 0);
    let mut x = 1u64;
    for word in 0..16 * MIB / 8 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let found: u64 = f.ram.memory().read_obj(GuestAddress(word * 8)).unwrap();
        assert_eq!(found, x >> 34, "word {word}");
    }
}

#[test]
fn what_does_not_compress_stays() {
    let f = Fixture::new(4, 8);
    let mut x = 88_172_645_463_325_252_u64;
    for word in 0..2 * MIB / 8 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        f.ram.memory().write_obj(x, GuestAddress(word * 8)).unwrap();
    }
    (512..1024).for_each(|page| f.write(page, 1));
    if !f.has_huge_pages() {
        return;
    }
    let report = f.park();
    assert_eq!((report.parked, report.left.incompressible), (1, 1));
    assert_eq!(f.resident(), 2 * MIB);
    assert_eq!(f.paging.stats().counters.blocks_incompressible, 1);
}

/// LZ4 that fails once `left` pages have been compressed or restored.
struct Failing {
    compressions: Arc<AtomicU64>,
    restorations: Arc<AtomicU64>,
}

struct FailingWorker(Box<dyn Worker>, Arc<AtomicU64>);

fn spend(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

impl Codec for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn worker(&self) -> Result<Box<dyn Worker>, CodecError> {
        if !spend(&self.compressions) {
            let reason = "injected".into();
            return Err(CodecError::Setup { codec: "failing", reason });
        }
        Ok(Box::new(FailingWorker(Lz4.worker()?, Arc::clone(&self.restorations))))
    }
}

impl Worker for FailingWorker {
    fn compress(&mut self, page: &Page) -> Option<&[u8]> {
        self.0.compress(page)
    }

    fn decompress(&mut self, data: &[u8], page: &mut Page) -> Result<(), CodecError> {
        if !spend(&self.1) {
            return Err(CodecError::Damaged("injected".into()));
        }
        self.0.decompress(data, page)
    }
}

#[test]
fn a_codec_that_cannot_be_set_up_leaves_memory_in_place() {
    let (compressions, restorations) = (Arc::default(), Arc::new(AtomicU64::new(1 << 40)));
    let codec = Failing { compressions, restorations };
    let f = Fixture::with(4, 8, BackingKind::Thp, Box::new(codec), Vec::new());
    f.fill(6);
    if !f.has_huge_pages() {
        return;
    }
    let report = f.park();
    assert!(report.stopped.is_some_and(|why| why.contains("injected")));
    assert_eq!((report.parked, f.resident()), (0, 4 * MIB));
    f.check(6);
}

/// Contents that are lost are never replaced by zeroes: the machine's owner is notified.
#[test]
fn damaged_pages_are_a_loss_that_is_told() {
    let (compressions, restorations) = (Arc::new(AtomicU64::new(1 << 40)), Arc::default());
    let codec = Failing { compressions, restorations };
    let f = Fixture::with(4, 8, BackingKind::Thp, Box::new(codec), Vec::new());
    f.fill(6);
    if !f.has_huge_pages() {
        return;
    }
    f.park();
    let report = f.unpark();
    assert_eq!((report.returned, report.lost), (0, 2));
    assert_eq!(f.losses.load(Ordering::Relaxed), 2);
    let stats = f.paging.stats();
    assert_eq!((stats.lost_bytes, stats.counters.blocks_lost), (4 * MIB, 2));
    // The kernel itself is refused as a thread would be: it reads without a signal.
    let host = f.ram.regions()[0].host().addr();
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the address is mapped; the kernel reads it, and no reference is made.
    let wrote = unsafe {
        use std::os::fd::AsRawFd as _;
        libc::write(writer.as_raw_fd(), host as *const libc::c_void, 1)
    };
    assert_eq!(wrote, -1);
}

#[test]
fn memory_is_read_from_a_file_when_it_is_touched() {
    let mut file = tempfile();
    let pages = 8 * MIB / PAGE_SIZE;
    for page in 0..pages {
        std::io::Write::write_all(&mut file, &Fixture::text(page, 9)).unwrap();
    }
    let source: Arc<dyn PageSource> = Arc::new(FileSource::new(file, 0));
    let f = Fixture::with(8, 8, BackingKind::Thp, Box::new(Lz4), vec![source]);
    f.paging.attach(0).unwrap();
    assert_eq!(f.resident(), 0);
    assert!(f.holds(700, 9));
    f.paging.settle();
    assert_eq!(f.resident(), 2 * MIB);
    f.write(700, 10);
    // What has come from a file may go to the store.
    let report = f.park();
    assert_eq!(report.parked, 1, "{report:?} {:?}", f.paging.stats());
    assert!(f.holds(700, 10));
    f.write(700, 9);
    f.unpark();
    f.check(9);
    assert!(matches!(f.paging.attach(0), Err(PagingError::InUse)));
}

fn tempfile() -> std::fs::File {
    use rustix::fs::{MemfdFlags, memfd_create};
    memfd_create(c"snapshot", MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn memory_of_other_kinds_is_refused_with_the_reason() {
    let layout = MemoryLayout::new(Bytes(4 * MIB), Bytes(0)).unwrap();
    let ram = Arc::new(GuestRam::new(layout, BackingKind::Memfd).unwrap());
    let config = PagingConfig {
        pool_limit: Bytes(MIB),
        codec: Box::new(Lz4),
        second_codec: None,
        sources: Vec::new(),
    };
    let refused = Paging::start(ram, config, Box::new(|_| ())).err().unwrap();
    assert!(refused.to_string().contains("memfd"), "{refused}");
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
        for round in 0..12 {
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
    assert!(stats.counters.blocks_stored > 0 && stats.counters.blocks_touched > 0, "{stats:?}");
}

#[test]
fn a_trial_finds_the_blocks_that_are_not_touched() {
    let f = Fixture::new(16, 16);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    let mut tracker = f.paging.cold_tracker(Probation { at_once: 4, longest_pause: 8 });
    let mut cold = 0;
    for _ in 0..40 {
        let trial = f.paging.begin_trial(&mut tracker, 4, &RangeSet::new());
        assert_eq!(f.paging.stats().staged_bytes, trial.len() as u64 * BLOCK_SIZE);
        // The guest uses blocks 0 and 5 all the time.
        assert!(f.holds(3, 1) && f.holds(5 * 512, 1));
        f.paging.settle();
        let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
        assert_eq!((report.kept, report.stopped), (0, None));
        cold += report.stored;
        f.paging.validate().unwrap();
    }
    assert_eq!(cold, 6);
    assert_eq!(f.resident(), 4 * MIB);
    assert_eq!(f.paging.stats().staged_bytes, 0);
    f.check(1);
}
