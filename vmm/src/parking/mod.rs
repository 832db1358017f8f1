// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parking: a machine's memory is compressed into the monitor's pool, and brought back on access or
//! on request.
//!
//! `mm::paging` does the work. This folder starts it on first use, runs its operations on the
//! compactor's thread, so that a pass and an eviction never overlap, and tracks their progress. May
//! use: `mm::paging`, the compactor, `config`, `host`. Must not use: KVM, the API.
//!
//! - `room.rs`: how much memory the host can give
//! - `trim.rs`: the guest gives up what it can spare before it is parked; `trim_guest.rs`: by its
//!   balloon

mod room;
mod trim;
mod trim_guest;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mm::blocks::guest_side::GuestSide;
use mm::blocks::page_set::PageSet;
use mm::budget::{Budget, Charge};
use mm::guest_ram::GuestRam;
use mm::paging::{self, Paging, PagingError, PagingStats, ParkReport, ParkRequest, UnparkReport};
use mm::range_set::RangeSet;
use mm::store::{Codec, Lz4, Zstd};
use mm::units::{Bytes, usize_from};

use crate::compactor::{Compactor, CompactorError, LiveGuest};
use crate::config::{PageCodec, PagingConfig};
use crate::exit::{ExitReason, ExitSignal};
use room::RoomGauge;
pub use trim::TrimReport;
use trim_guest::LiveTrim;

/// The running operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The guest gives up what it can spare, before memory is moved to the pool.
    Trim,
    /// Memory is moved to the pool.
    Park,
    /// Memory is brought back.
    Unpark,
}

/// How an operation went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished<R> {
    /// What came of it.
    pub report: R,
    /// How long it took.
    pub took: Duration,
}

/// Result of a park operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parked {
    /// What was moved to the pool.
    pub blocks: ParkReport,
    /// What the guest gave up before, if it was asked to.
    pub trim: Option<TrimReport>,
}

/// What a park operation is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParkWish {
    /// Guest memory to keep resident.
    pub floor: Bytes,
    /// Whether the guest first gives up what it can spare.
    pub trim: bool,
}

/// How far the present operation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParkingProgress {
    /// The running operation, if any.
    pub operation: Option<Operation>,
    /// Blocks done.
    pub done: u64,
    /// Blocks to do.
    pub planned: u64,
}

/// Called on the compactor's thread at the end of an operation.
pub type WhenOperationDone<R> = Box<dyn FnOnce(Finished<R>) + Send>;

#[derive(Default)]
struct OperationRecord {
    operation: Mutex<Option<Operation>>,
    done: AtomicU64,
    planned: AtomicU64,
    last_park: Mutex<Option<Finished<Parked>>>,
}

/// The pager of a machine. Drop it after the machine: its vCPUs and devices may wait for pages.
pub struct Parking {
    paging: Arc<Paging>,
    threads: Option<usize>,
    host_threads: Arc<Budget>,
    shared: Arc<OperationRecord>,
}

impl Parking {
    /// Starts paging `ram` as configured; absent blocks may cost the process `max_mappings`, and
    /// operations take their threads from `host_threads`. If contents are lost, the machine is
    /// stopped through `exit`.
    ///
    /// # Errors
    ///
    /// [`PagingError`], which says what to do.
    pub fn start(
        ram: &Arc<GuestRam>,
        config: &PagingConfig,
        max_mappings: u64,
        host_threads: &Arc<Budget>,
        exit: &Arc<ExitSignal>,
    ) -> Result<Self, PagingError> {
        let exit = Arc::clone(exit);
        let on_loss = Box::new(move |error: &paging::SourceError| {
            exit.raise(ExitReason::HostError(error.to_string()));
        });
        let codec = |codec: PageCodec| -> Box<dyn Codec> {
            match codec {
                PageCodec::Lz4 => Box::new(Lz4),
                PageCodec::Zstd(level) => Box::new(Zstd { level: level.into() }),
            }
        };
        let half = Bytes(ram.pages().bytes().0 / 2);
        let pool_limit = config.pool_mib.and_then(Bytes::from_mib).unwrap_or(half);
        let max_mappings = usize_from(max_mappings);
        let settings = paging::PagingConfig {
            pool_limit,
            max_mappings,
            codec: codec(config.codec),
            second_codec: config.second_codec.map(codec),
            sources: Vec::new(),
            host: Some(Box::new(RoomGauge::find())),
        };
        Ok(Self {
            paging: Arc::new(Paging::start(Arc::clone(ram), settings, on_loss)?),
            threads: config.threads.map(usize::from),
            host_threads: Arc::clone(host_threads),
            shared: Arc::default(),
        })
    }

    /// Puts the guest's memory into the pool, as `wish` says.
    ///
    /// # Errors
    ///
    /// [`CompactorError`] while a pass or another operation runs.
    pub fn park(
        &self,
        compactor: &Compactor,
        wish: ParkWish,
        when_done: WhenOperationDone<Parked>,
    ) -> Result<(), CompactorError> {
        let (paging, shared) = (self.paging.clone(), self.shared.clone());
        let (wanted, budget) = (self.threads, self.host_threads.clone());
        compactor.run_alone(Box::new(move |guest, cancel| {
            let ParkWish { floor, trim } = wish;
            let first = if trim { Operation::Trim } else { Operation::Park };
            let finished = shared.run(first, |progress| {
                let trim = trim.then(|| trim::trim(&LiveTrim::new(guest), floor, cancel, progress));
                shared.now(Some(Operation::Park));
                let exclude = release_what_is_free(guest);
                let (threads, _charge) = take_threads(wanted, &budget);
                let threads = Some(threads);
                // What the guest has just given up are holes in its blocks.
                let with_holes = trim.is_some();
                let request = ParkRequest { floor, threads, exclude, with_holes };
                Parked { blocks: paging.park(&request, cancel, progress), trim }
            });
            if let Some(TrimReport { given, ended }) = &finished.report.trim {
                tracing::info!("the guest gave up {} MiB before: {ended}", given.as_mib());
            }
            tracing::info!(ms = finished.took.as_millis(), "{}", finished.report.blocks);
            *lock(&shared.last_park) = Some(finished.clone());
            Box::new(move || when_done(finished))
        }))
    }

    /// Brings everything back, the hot set first.
    ///
    /// # Errors
    ///
    /// As [`park`](Self::park).
    pub fn unpark(
        &self,
        compactor: &Compactor,
        when_done: WhenOperationDone<UnparkReport>,
    ) -> Result<(), CompactorError> {
        let (paging, shared) = (self.paging.clone(), self.shared.clone());
        let (wanted, budget) = (self.threads, self.host_threads.clone());
        compactor.run_alone(Box::new(move |_, cancel| {
            let finished = shared.run(Operation::Unpark, |progress| {
                let (threads, _charge) = take_threads(wanted, &budget);
                paging.unpark(Some(threads), cancel, progress)
            });
            let UnparkReport { returned, left, lost } = finished.report;
            tracing::info!(returned, left, lost, ms = finished.took.as_millis(), "unparked");
            Box::new(move || when_done(finished))
        }))
    }

    /// How far the present operation is.
    pub fn progress(&self) -> ParkingProgress {
        ParkingProgress {
            operation: *lock(&self.shared.operation),
            done: self.shared.done.load(Ordering::Relaxed),
            planned: self.shared.planned.load(Ordering::Relaxed),
        }
    }

    /// Result of the last parking.
    pub fn last_park(&self) -> Option<Finished<Parked>> {
        lock(&self.shared.last_park).clone()
    }

    /// The pager itself.
    pub(crate) fn paging(&self) -> &Arc<Paging> {
        &self.paging
    }

    /// What is where.
    pub fn stats(&self) -> PagingStats {
        self.paging.stats()
    }
}

impl OperationRecord {
    fn run<R>(
        &self,
        operation: Operation,
        work: impl FnOnce(paging::OnProgress<'_>) -> R,
    ) -> Finished<R> {
        self.now(Some(operation));
        let progress = |done, planned| {
            self.done.fetch_max(done, Ordering::Relaxed);
            self.planned.store(planned, Ordering::Relaxed);
        };
        let began = Instant::now();
        let report = work(&progress);
        let took = began.elapsed();
        self.now(None);
        Finished { report, took }
    }

    /// Notes what runs now, of which nothing is done yet.
    fn now(&self, operation: Option<Operation>) {
        *lock(&self.operation) = operation;
        self.done.store(0, Ordering::Relaxed);
        self.planned.store(0, Ordering::Relaxed);
    }
}

/// As many threads as are wanted, or as the host has processors, and `budget` has left; with the
/// charge for all but the calling one.
fn take_threads(wanted: Option<usize>, budget: &Arc<Budget>) -> (usize, Option<Charge>) {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let mut more = wanted.unwrap_or_else(processors).saturating_sub(1);
    more = more.min(usize_from(budget.left()));
    while more > 0 {
        // Others may have been faster.
        if let Ok(charge) = budget.try_charge(more as u64) {
            return (1 + more, Some(charge));
        }
        more -= 1;
    }
    (1, None)
}

/// Discards ballooned pages that are resident, as compressing them would be wasteful; returns pages
/// that a device is using, which stay.
pub(crate) fn release_what_is_free(guest: &LiveGuest) -> RangeSet {
    let holdings = guest.holdings();
    let map = match guest.map() {
        Ok(map) => map,
        Err(error) => {
            tracing::warn!("cannot read the block map: {error}");
            return pages_of(&holdings.gpu);
        }
    };
    for (id, block) in map.iter().filter(|(_, block)| block.wasted > 0) {
        tracing::debug!("{id} still holds {} ballooned pages", block.wasted);
        if let Err(error) = guest.discard_ballooned(id, map.wasted(id)) {
            tracing::warn!("cannot discard balloon pages of {id}: {error}");
        }
    }
    pages_of(&holdings.gpu)
}

/// The pages of `set`, as ranges.
pub(crate) fn pages_of(set: &PageSet) -> RangeSet {
    set.iter().flat_map(|(block, pages)| pages.ranges_in(block)).collect()
}

#[cfg(test)]
mod tests;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
