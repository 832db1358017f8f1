// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Failures: a full pool, a failing codec, damaged data, memory that cannot be parked.

use super::*;
use crate::store::{CodecError, CodecWorker};

#[test]
fn a_full_pool_stops_parking_and_loses_nothing() {
    let f = Fixture::new(16, 1);
    // Words in random order compress only a little.
    f.fill_with_words();
    if !f.has_huge_pages() {
        return;
    }
    let report = f.park();
    let why = report.stopped.expect("the pool is too small");
    assert!(why.contains("limit"), "{why}");
    let stats = f.paging.stats();
    assert_eq!(f.resident() + stats.absent_bytes, 16 * MIB);
    assert_eq!(stats.staged_bytes, 0);
    f.check_words();
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

struct FailingWorker(Box<dyn CodecWorker>, Arc<AtomicU64>);

fn spend(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

impl Codec for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError> {
        if !spend(&self.compressions) {
            let reason = "injected".into();
            return Err(CodecError::Setup { codec: "failing", reason });
        }
        Ok(Box::new(FailingWorker(Lz4.worker(most)?, Arc::clone(&self.restorations))))
    }
}

impl CodecWorker for FailingWorker {
    fn compress(&mut self, page: &[u8]) -> Option<&[u8]> {
        self.0.compress(page)
    }

    fn decompress(&mut self, data: &[u8], page: &mut [u8]) -> Result<(), CodecError> {
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
fn memory_of_other_kinds_is_refused_with_the_reason() {
    let layout = MemoryLayout::new(Bytes(4 * MIB), Bytes(0)).unwrap();
    let ram = Arc::new(GuestRam::new(layout, BackingKind::Memfd).unwrap());
    let config = PagingConfig {
        pool_limit: Bytes(MIB),
        max_mappings: 1 << 15,
        codec: Box::new(Lz4),
        second_codec: None,
        sources: Vec::new(),
        host: None,
    };
    let refused = Paging::start(ram, config, Box::new(|_| ())).err().unwrap();
    assert!(refused.to_string().contains("memfd"), "{refused}");
}
