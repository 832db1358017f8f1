// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parking a guest: all of its memory except a floor goes to the store; and bringing it back.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::range_set::RangeSet;
use crate::sys::thread::block_signals;
use crate::units::{BLOCK_SIZE, Bytes, usize_from};

use super::evict::{OnAccess, Stay};
use super::pager_engine::{PagerEngine, lock};
use super::resolve::FillOutcome;
use super::room::Grant;
use super::staging::Inlet;
use super::states::BlockState;

/// A request to park.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParkRequest {
    /// Resident guest memory to keep in place, the hot set first.
    pub floor: Bytes,
    /// Threads to compress with; as many as the host has processors if `None`.
    pub threads: Option<usize>,
    /// Pages that stay, with the blocks that they are in: those that a device is using.
    pub exclude: RangeSet,
    /// Whether blocks leave that are there only in part: those of which the guest gave up pages.
    pub with_holes: bool,
}

/// Blocks that parking left in place, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftBlocks {
    /// Excluded: pinned, or in use by a device.
    pub pinned: u64,
    /// Made of small pages.
    pub small: u64,
    /// In use by the kernel, or shared.
    pub busy: u64,
    /// Accessed by the guest during the operation, which stopped before they were tried again.
    pub wanted: u64,
    /// Not compressible.
    pub incompressible: u64,
}

/// Result of parking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParkReport {
    /// Blocks moved to the store.
    pub parked: u64,
    /// Blocks that stayed, apart from the floor.
    pub left: LeftBlocks,
    /// Blocks kept for the floor.
    pub kept: u64,
    /// Bytes of frames that packing the store closer emptied.
    pub compacted: Bytes,
    /// Reason for stopping early, if it did. Blocks parked until then stay parked.
    pub stopped: Option<String>,
}

/// Result of bringing back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnparkReport {
    /// Blocks that are back.
    pub returned: u64,
    /// Blocks that could not be brought back now: host memory is short.
    pub left: u64,
    /// Blocks whose contents are lost.
    pub lost: u64,
}

/// Called with the number of blocks done and planned.
pub type OnProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Counts of [`LeftBlocks`] that several threads add to.
#[derive(Default)]
struct LeftTally {
    parked: AtomicU64,
    pinned: AtomicU64,
    small: AtomicU64,
    busy: AtomicU64,
    wanted: AtomicU64,
    incompressible: AtomicU64,
    stopped: Mutex<Option<String>>,
}

impl LeftTally {
    /// Counts the result for a block; returns whether to continue.
    fn count(&self, result: Result<(), Stay>) -> bool {
        let counter = match &result {
            Ok(()) => &self.parked,
            Err(Stay::Away | Stay::Empty) => return true,
            Err(Stay::Pinned) => &self.pinned,
            Err(Stay::NotHuge) => &self.small,
            Err(Stay::Busy) => &self.busy,
            Err(Stay::Wanted) => &self.wanted,
            Err(Stay::Incompressible) => &self.incompressible,
            Err(stay @ (Stay::NoSlot | Stay::Mappings | Stay::Backing(_) | Stay::Store(_))) => {
                lock(&self.stopped).get_or_insert_with(|| stay.to_string());
                return false;
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn report(self) -> ParkReport {
        let get = |counter: AtomicU64| counter.into_inner();
        ParkReport {
            parked: get(self.parked),
            left: LeftBlocks {
                pinned: get(self.pinned),
                small: get(self.small),
                busy: get(self.busy),
                wanted: get(self.wanted),
                incompressible: get(self.incompressible),
            },
            stopped: self.stopped.into_inner().unwrap_or_default(),
            ..ParkReport::default()
        }
    }
}

impl fmt::Display for ParkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = &self.left;
        let total = left.pinned + left.small + left.busy + left.wanted + left.incompressible;
        write!(f, "{} blocks parked, {total} left in place", self.parked)?;
        match &self.stopped {
            Some(why) => write!(f, "; stopped: {why}"),
            None => Ok(()),
        }
    }
}

impl PagerEngine {
    /// Evicts what is resident, coldest first, down to the floor.
    pub(super) fn park(
        &self,
        request: &ParkRequest,
        cancel: &AtomicBool,
        progress: OnProgress<'_>,
    ) -> ParkReport {
        self.guard_empty_blocks();
        let (evict, kept) = self.to_evict(request.floor);
        let tally = LeftTally::default();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let stop = AtomicBool::new(false);
        let wanted = Mutex::new(Vec::new());
        let again = || lock(&wanted).pop();
        let work = || {
            while !cancel.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                let first = evict.get(next.fetch_add(1, Ordering::Relaxed)).copied();
                // The guest has had the blocks that it wanted for a while: now it waits for them.
                let on_access = if first.is_some() { OnAccess::Return } else { OnAccess::Wait };
                let Some(index) = first.or_else(again) else { return };
                let result = self.evict(index, request, on_access);
                if first.is_some() && matches!(result, Err(Stay::Wanted)) {
                    lock(&wanted).push(index);
                    continue;
                }
                if !tally.count(result) {
                    stop.store(true, Ordering::Relaxed);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, evict.len() as u64);
            }
        };
        self.on_threads(request.threads, evict.len(), work);
        // Those that the guest has given up meanwhile.
        self.guard_empty_blocks();
        let stopped_before = lock(&wanted).len() as u64;
        tally.wanted.fetch_add(stopped_before, Ordering::Relaxed);
        // Compact: leftovers of removed pages would keep whole frames in use.
        let compacted = Bytes(self.pool.compact());
        lock(&self.hot).parked();
        let mut report = ParkReport { compacted, kept, ..tally.report() };
        if cancel.load(Ordering::Relaxed) {
            report.stopped.get_or_insert_with(|| "cancelled".into());
        }
        report
    }

    fn evict(&self, index: usize, request: &ParkRequest, on_access: OnAccess) -> Result<(), Stay> {
        if self.is_excluded(index, &request.exclude) {
            return Err(Stay::Pinned);
        }
        if matches!(self.record().state(index), BlockState::Absent(_)) {
            return self.take_pages_out(index);
        }
        let holes = if request.with_holes { self.fill_holes(index)? } else { None };
        let slot = self.take_out(index, on_access)?;
        self.pack(index, slot, on_access, holes.as_deref())
    }

    /// Whether a page of block `index` is in `exclude`.
    pub(super) fn is_excluded(&self, index: usize, exclude: &RangeSet) -> bool {
        let block = self.areas.block(index).checked_range().expect("a block of RAM");
        exclude.intersection(block).next().is_some()
    }

    /// Brings everything back, the hot set first.
    pub(super) fn unpark(
        &self,
        threads: Option<usize>,
        cancel: &AtomicBool,
        progress: OnProgress<'_>,
    ) -> UnparkReport {
        self.release_empty_blocks();
        let blocks = self.to_bring_back();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (returned, left, lost) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            let mut inlet = match Inlet::new() {
                Ok(inlet) => inlet,
                Err(error) => return tracing::warn!("cannot map staging memory: {error}"),
            };
            while !cancel.load(Ordering::Relaxed) {
                let Some(&index) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let count = Some(&self.counters.blocks_prefetched);
                // A host that is short keeps what it has: the block comes back on access.
                let outcome = match self.room.grant() {
                    Grant::Block => self.bring_all_back(index, &mut inlet, count),
                    _ => FillOutcome::Later,
                };
                if outcome == FillOutcome::Later {
                    // The pager left threads to this one that accessed the block meanwhile.
                    self.wake(self.areas.host(index));
                }
                if outcome == FillOutcome::Done && self.huge {
                    // Pages of it may have come back before.
                    self.try_make_huge(index);
                }
                let counter = match outcome {
                    // Present: brought back on access.
                    FillOutcome::Done
                    | FillOutcome::Page { .. }
                    | FillOutcome::Present
                    | FillOutcome::Elsewhere => &returned,
                    FillOutcome::Later => &left,
                    FillOutcome::Lost => &lost,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, blocks.len() as u64);
            }
        };
        self.on_threads(threads, blocks.len(), work);
        self.pool.compact();
        let get = |counter: AtomicU64| counter.into_inner();
        UnparkReport { returned: get(returned), left: get(left), lost: get(lost) }
    }

    /// Brings block `index` back. While another thread moves it or a page of it, waits for that
    /// first: the rest of the block may still be absent then.
    fn bring_all_back(
        &self,
        index: usize,
        inlet: &mut Inlet,
        count: Option<&AtomicU64>,
    ) -> FillOutcome {
        loop {
            let outcome = self.bring_back(index, inlet, count);
            if outcome != FillOutcome::Elsewhere {
                return outcome;
            }
            let record = self.record();
            let moving = matches!(
                record.state(index),
                BlockState::Filling | BlockState::Leaving { .. } | BlockState::Packing { .. }
            );
            if moving {
                drop(self.settled.wait_timeout(record, Duration::from_millis(1)));
            }
        }
    }

    /// Blocks to evict, coldest first, and how many are kept for the floor. Absent ones are evicted
    /// for their pages that came back.
    fn to_evict(&self, floor: Bytes) -> (Vec<usize>, u64) {
        let mut present = self.record().select(|state| match state {
            BlockState::Present => true,
            BlockState::Absent(absence) => absence.pages_back() > 0,
            _ => false,
        });
        present.retain(|&index| self.is_resident(index));
        {
            let hot = lock(&self.hot);
            // The hot set is evicted last.
            let heat = |index: &usize| hot.place(*index).map_or(0, |place| usize::MAX - place);
            present.sort_by_key(heat);
        }
        let keep = usize_from(floor.0.div_ceil(BLOCK_SIZE));
        let keep = keep.min(present.len());
        present.truncate(present.len() - keep);
        (present, keep as u64)
    }

    pub(super) fn is_resident(&self, index: usize) -> bool {
        let block = self.areas.block(index).checked_range().expect("a block of RAM");
        self.ram.residency_of(block).is_ok_and(|found| found.resident > Bytes(0))
    }

    /// Absent blocks, the hot set first; also those of which at least a page is coming back now.
    fn to_bring_back(&self) -> Vec<usize> {
        let away = |state: &BlockState| {
            matches!(state, BlockState::Absent(_) | BlockState::Out { .. } | BlockState::Filling)
        };
        let mut away = self.record().select(away);
        let hot = lock(&self.hot);
        away.sort_by_key(|&index| hot.place(index).unwrap_or(usize::MAX));
        away
    }

    /// Runs `work` on as many threads as useful for `blocks` blocks, including the current one.
    fn on_threads(&self, threads: Option<usize>, blocks: usize, work: impl Fn() + Sync) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let most = threads.unwrap_or(processors).min(self.outlet.slots()).min(blocks).max(1);
        std::thread::scope(|scope| {
            for _ in 1..most {
                let thread = std::thread::Builder::new().name("paging".into());
                let spawned = thread.spawn_scoped(scope, || {
                    block_signals();
                    work();
                });
                if let Err(error) = spawned {
                    tracing::debug!("parking with fewer threads: {error}");
                    break;
                }
            }
            work();
        });
    }
}
