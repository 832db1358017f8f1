// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Carrying out evictions: blocks go on trial, and after a while those that were not missed are
//! compressed. On a host that is short, room is made at once. The work is done on the compactor's thread, so that it never meets a pass, and makes
//! room for a client's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mm::blocks::guest_side::GuestSide;
use mm::paging::{
    ColdTracker, EvictionCosts, OnTrial, Paging, PagingCounters, PagingStats, Probation,
    ReliefHand, TrialReport,
};
use mm::units::{BLOCK_SIZE, Bytes};

use super::orders::lock;
use super::snapshot::PagingUse;
use super::status::EvictionCounters;
use crate::compactor::{BackgroundWork, CompactorError, LiveGuest};
use crate::parking::pages_of;

/// Time after which parked blocks are recompressed.
const LONG: Duration = Duration::from_secs(60);
/// Parked blocks that are recompressed between two looks at whether the host is short.
const REPACKED_AT_ONCE: usize = 4;
/// Pages that came back on their own and weigh as much as a block that did.
const PAGES_LIKE_A_BLOCK: u64 = 64;
/// Number of blocks after which measured costs are used.
const SAMPLE: u64 = 8;
/// Rounds of relief in a row that free nothing, after which it is given up for now.
const VAIN_ROUNDS: u32 = 4;

/// Where the present round of trials is.
#[derive(Default)]
enum TrialStage {
    #[default]
    Idle,
    /// Work of the policy is running on the compactor's thread.
    Working,
    /// Blocks are out.
    Waiting(OnTrial, Instant),
}

/// State shared by the pressure thread and the compactor's thread.
struct TrialRounds {
    paging: Arc<Paging>,
    tracker: Mutex<ColdTracker>,
    stage: Mutex<TrialStage>,
    hand: Mutex<ReliefHand>,
    counters: Mutex<EvictionCounters>,
    /// Why storing ended early the last time, if it did.
    stopped: Mutex<Option<String>>,
}

/// Evicts cold blocks of one machine.
pub(super) struct Eviction {
    shared: Arc<TrialRounds>,
    work: BackgroundWork,
}

impl Eviction {
    pub(super) fn new(paging: Arc<Paging>, work: BackgroundWork) -> Self {
        let tracker = Mutex::new(paging.cold_tracker(Probation::default()));
        let (stage, hand, counters, stopped) = Default::default();
        let rounds = TrialRounds { paging, tracker, stage, hand, counters, stopped };
        Self { shared: Arc::new(rounds), work }
    }

    /// Takes at most `blocks` out on trial for `time`.
    pub(super) fn begin(&self, blocks: usize, time: Duration) -> Result<(), CompactorError> {
        let shared = Arc::clone(&self.shared);
        *lock(&self.shared.stage) = TrialStage::Working;
        let started = self.work.run(Box::new(move |guest, _| {
            let exclude = pages_of(&guest.holdings().gpu);
            let trial = shared.paging.begin_trial(&mut lock(&shared.tracker), blocks, &exclude);
            let mut counters = lock(&shared.counters);
            counters.trials += 1;
            counters.tried += trial.len() as u64;
            drop(counters);
            *lock(&shared.stage) = TrialStage::Waiting(trial, Instant::now() + time);
            Box::new(|| ())
        }));
        if started.is_err() {
            *lock(&self.shared.stage) = TrialStage::Idle;
        }
        started
    }

    /// Ends the round if its time is up, or in any case with `anyway`. With `in_a_hurry`, and while the
    /// host is short, compression competes with guests for CPU time.
    pub(super) fn end_if_due(&self, now: Instant, anyway: bool, in_a_hurry: bool) {
        let is_due = |stage: &TrialStage| matches!(stage, TrialStage::Waiting(_, until) if anyway || *until <= now);
        if !is_due(&lock(&self.shared.stage)) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        // If the thread is busy, the next round tries again, and the blocks stay out.
        let _ = self.work.run(Box::new(move |_, cancel| {
            let stage = std::mem::replace(&mut *lock(&shared.stage), TrialStage::Working);
            if let TrialStage::Waiting(mut trial, _) = stage {
                let stop = shared.stop(cancel);
                if !in_a_hurry {
                    let pack = || shared.paging.pack_trial(&mut trial, &stop);
                    shared.paging.in_idle_time(pack, &stop);
                }
                // What is left is needed now.
                let report = shared.paging.end_trial(&mut lock(&shared.tracker), trial, cancel);
                shared.count(&report);
                if in_a_hurry {
                    shared.paging.compact();
                } else {
                    shared.paging.in_idle_time(|| shared.paging.compact(), &stop);
                }
            }
            *lock(&shared.stage) = TrialStage::Idle;
            Box::new(|| ())
        }));
    }

    /// Whether the host is so short that room must be made at once, and nothing is done about it.
    pub(super) fn should_make_room(&self) -> bool {
        !matches!(*lock(&self.shared.stage), TrialStage::Working)
            && self.shared.paging.is_short(false)
    }

    /// Time until the host should be looked at again.
    pub(super) fn has_room_for(&self) -> Duration {
        self.shared.paging.has_room_for()
    }

    /// Evicts until the host has room, down to `floor` of guest memory.
    pub(super) fn make_room(&self, floor: Bytes) -> Result<(), CompactorError> {
        let shared = Arc::clone(&self.shared);
        self.work.run(Box::new(move |guest, cancel| {
            let stage = std::mem::replace(&mut *lock(&shared.stage), TrialStage::Working);
            if let TrialStage::Waiting(trial, _) = stage {
                let report = shared.paging.end_trial(&mut lock(&shared.tracker), trial, cancel);
                shared.count(&report);
            }
            shared.relieve(guest, floor, cancel);
            *lock(&shared.stage) = TrialStage::Idle;
            Box::new(|| ())
        }))
    }

    /// Brings everything back.
    pub(super) fn unpark(&self) -> Result<(), CompactorError> {
        let shared = Arc::clone(&self.shared);
        self.work.run(Box::new(move |_, cancel| {
            let report = shared.paging.unpark(None, cancel, &|_, _| ());
            tracing::info!(blocks = report.returned, left = report.left, "unparked");
            Box::new(|| ())
        }))
    }

    /// Recompresses at most `blocks` blocks that have been parked for long.
    pub(super) fn repack(&self, blocks: usize) -> Result<(), CompactorError> {
        let shared = Arc::clone(&self.shared);
        self.work.run(Box::new(move |_, cancel| {
            let stop = shared.stop(cancel);
            let repack = || {
                for done in (0..blocks).step_by(REPACKED_AT_ONCE).take_while(|_| !stop()) {
                    let some = REPACKED_AT_ONCE.min(blocks - done);
                    let report = shared.paging.repack(some, LONG, cancel);
                    tracing::debug!(?report, "repacked");
                }
            };
            shared.paging.in_idle_time(repack, &stop);
            Box::new(|| ())
        }))
    }

    /// Enables or disables read-ahead.
    pub(super) fn read_ahead(&self, on: bool) {
        self.shared.paging.read_ahead(on);
    }

    /// Whether no round is running.
    pub(super) fn is_idle(&self) -> bool {
        matches!(*lock(&self.shared.stage), TrialStage::Idle)
    }

    pub(super) fn counters(&self) -> EvictionCounters {
        *lock(&self.shared.counters)
    }

    /// Why storing ended early the last time, if it did.
    pub(super) fn stopped(&self) -> Option<String> {
        lock(&self.shared.stopped).clone()
    }

    /// The pager now.
    pub(super) fn usage(&self) -> PagingUse {
        let stats = self.shared.paging.stats();
        let counters = &stats.counters;
        let spent = counters.compress_ns.saturating_add(counters.fill_ns);
        let spent = spent.saturating_add(counters.repack_ns);
        PagingUse {
            absent: Bytes(stats.absent_bytes.saturating_add(stats.staged_bytes)),
            // Blocks that come back from a trial are expected and not counted.
            touched_blocks: counters
                .blocks_touched
                .saturating_sub(counters.blocks_returned)
                .saturating_add(parked_pages(counters) / PAGES_LIKE_A_BLOCK),
            spent: Duration::from_nanos(spent),
            costs: measured(&stats),
            pool: [pool_bytes(&stats), stats.pool.limit_bytes].map(Bytes),
            busy: !self.is_idle(),
            repackable: self.shared.paging.repackable(LONG),
        }
    }
}

impl TrialRounds {
    /// Whether work in idle time should end: a client needs the thread, or room must be made.
    fn stop<'a>(&'a self, cancel: &'a AtomicBool) -> impl Fn() -> bool + Sync + 'a {
        || cancel.load(Ordering::Relaxed) || self.paging.is_short(false)
    }

    fn relieve(&self, guest: &LiveGuest, floor: Bytes, cancel: &AtomicBool) {
        let exclude = pages_of(&guest.holdings().gpu);
        let total = guest.ram().pages().bytes();
        let mut hand = lock(&self.hand);
        let (mut in_vain, mut freed) = (0, 0);
        while in_vain < VAIN_ROUNDS && !cancel.load(Ordering::Relaxed) && self.paging.is_short(true)
        {
            if total.saturating_sub(guest.ram().absent()) <= floor {
                break;
            }
            let began = Instant::now();
            let report = self.paging.relieve(&mut hand, &exclude, cancel);
            in_vain = if report.is_empty() { in_vain + 1 } else { 0 };
            freed += report.stored + report.partly;
            *lock(&self.stopped) = report.stopped.clone();
            if report.stopped.is_some() {
                break;
            }
            // Half of a processor at most: the guests need the other half.
            std::thread::sleep(began.elapsed());
        }
        if freed > 0 {
            lock(&self.counters).relieved += freed;
            self.paging.compact();
        }
    }

    fn count(&self, report: &TrialReport) {
        let mut counters = lock(&self.counters);
        counters.stored += report.stored;
        counters.returned += report.returned;
        counters.unfit += report.kept;
        *lock(&self.stopped) = report.stopped.clone();
    }
}

/// Memory used by the pool, including tables.
fn pool_bytes(stats: &PagingStats) -> u64 {
    stats.pool.store.mem_used_total.saturating_add(stats.pool.metadata_bytes)
}

/// Pages that came back on their own, apart from those of trials.
fn parked_pages(counters: &PagingCounters) -> u64 {
    counters.pages_touched.saturating_sub(counters.pages_returned)
}

/// The measured cost of evicting a block and bringing it back.
fn measured(stats: &PagingStats) -> EvictionCosts {
    let usual = EvictionCosts::default();
    let counters = &stats.counters;
    let each = |ns: u64, blocks: u64, usual: Duration| match blocks {
        SAMPLE.. => Duration::from_nanos(ns / blocks),
        _ => usual,
    };
    let back = counters.blocks_touched + counters.blocks_prefetched;
    let back = back.saturating_sub(counters.blocks_returned);
    let back = back + parked_pages(counters) / PAGES_LIKE_A_BLOCK;
    let away = stats.absent_bytes / BLOCK_SIZE;
    let freed_bytes = match away {
        SAMPLE.. => BLOCK_SIZE.saturating_sub(pool_bytes(stats) / away),
        _ => usual.freed_bytes,
    };
    EvictionCosts {
        evict: each(counters.compress_ns, counters.compress_bytes / BLOCK_SIZE, usual.evict),
        fill: each(counters.fill_ns, back, usual.fill),
        freed_bytes,
        ..usual
    }
}
