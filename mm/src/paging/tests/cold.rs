// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks on trial, and those that stay away.

use std::cell::Cell;
use std::sync::mpsc::{Sender, channel};

use super::*;
use crate::paging::absence::FEW_PAGES;
use crate::store::{CodecError, CodecWorker};

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
    (7 * PAGES_PER_BLOCK..f.pages()).for_each(|page| assert!(f.holds(page, 1)));
    f.paging.settle();
    let rest = f.paging.repack(usize::MAX, Duration::ZERO, &NEVER);
    assert_eq!(rest.blocks, 4);
    assert_eq!(f.paging.repackable(Duration::ZERO), 0);
    assert!(f.paging.stats().pool.store.compr_data_size < before);
    f.check(1);
    f.paging.validate().unwrap();
    f.paging.settle();
    assert_eq!(f.paging.stats().pool.store.orig_data_size, 0);
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
        assert!((0..=FEW_PAGES as u64).all(|page| f.holds(page, 1) && f.holds(5 * 512 + page, 1)));
        f.paging.settle();
        let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
        assert_eq!((report.kept, report.stopped), (0, None));
        cold += report.stored;
        f.paging.validate().unwrap();
    }
    assert_eq!(cold, 6);
    // Nothing came from the pool: all touches were of blocks on trial.
    let counters = f.paging.stats().counters;
    assert!(counters.blocks_returned > 0, "{counters:?}");
    assert_eq!(counters.blocks_touched, counters.blocks_returned);
    assert_eq!(f.resident(), 4 * MIB);
    assert_eq!(f.paging.stats().staged_bytes, 0);
    f.check(1);
}

#[test]
fn a_trial_can_be_ended_in_two_steps() {
    let f = Fixture::new(16, 16);
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    let mut tracker = f.paging.cold_tracker(Probation::default());
    let mut trial = f.paging.begin_trial(&mut tracker, 8, &RangeSet::new());
    assert_eq!(trial.len(), 8);
    let asked = Cell::new(0);
    f.paging.pack_trial(&mut trial, &|| asked.replace(asked.get() + 1) == 3);
    assert_eq!((trial.len(), f.paging.stats().counters.blocks_stored), (5, 3));
    let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
    assert_eq!((report.stored, report.stopped), (8, None));
    f.check(1);
    f.paging.validate().unwrap();
}

/// LZ4 whose first page is not compressed before the thread has its usual policy again.
struct Stuck(Mutex<Option<Sender<bool>>>);

struct StuckWorker(Box<dyn CodecWorker>, Option<Sender<bool>>);

/// Whether this thread runs only where no other one wants to.
fn is_idle() -> bool {
    // SAFETY: no pointer is passed.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_IDLE }
}

impl Codec for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError> {
        Ok(Box::new(StuckWorker(Lz4.worker(most)?, lock(&self.0).take())))
    }
}

impl CodecWorker for StuckWorker {
    fn compress(&mut self, page: &[u8]) -> Option<&[u8]> {
        if let Some(began) = self.1.take() {
            // Without the privilege to return from that policy it never has it.
            began.send(is_idle()).unwrap();
            let give_up = std::time::Instant::now() + Duration::from_secs(300);
            while is_idle() {
                assert!(std::time::Instant::now() < give_up, "it was never hurried");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.0.compress(page)
    }

    fn decompress(&mut self, data: &[u8], page: &mut [u8]) -> Result<(), CodecError> {
        self.0.decompress(data, page)
    }
}

/// A busy host does not run a thread in idle time: a thread that waits for a block that it
/// compresses must not wait for idle time.
#[test]
fn a_guest_does_not_wait_for_idle_time() {
    let (tell, told) = channel();
    let codec = Stuck(Mutex::new(Some(tell)));
    let f = Fixture::with(4, 4, BackingKind::Thp, Box::new(codec), Vec::new());
    f.fill(1);
    if !f.has_huge_pages() {
        return;
    }
    let mut tracker = f.paging.cold_tracker(Probation::default());
    let mut trial = f.paging.begin_trial(&mut tracker, 1, &RangeSet::new());
    assert_eq!(trial.len(), 1);
    let out = f.paging.absent_blocks()[0].0;
    std::thread::scope(|scope| {
        let (paging, trial) = (&f.paging, &mut trial);
        let pack = || paging.pack_trial(trial, &|| false);
        let pack = scope.spawn(move || paging.in_idle_time(pack, &|| false));
        if told.recv().unwrap() {
            // Its page comes when the block is put back, as it is being compressed.
            assert!(f.holds(out * PAGES_PER_BLOCK + 7, 1));
        }
        pack.join().unwrap();
    });
    let report = f.paging.end_trial(&mut tracker, trial, &NEVER);
    assert_eq!(report.stored + report.returned, 1);
    f.check(1);
    f.paging.validate().unwrap();
}
