// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on parked memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mm::paging as pager;
use mm::units::{Bytes, SaturatingInto};

use super::{Controller, failed};
use crate::api::channel::ReplySender;
use crate::api::paging::{
    PagingAction, PagingCounters, PagingOperation, PagingReply, PagingStatus, Park, ParkReport,
    PoolStatus, Unpark, UnparkReport,
};
use crate::api::{Phase, Refusal, Reply};
use crate::compactor::Compactor;
use crate::parking::{Finished, Operation, ParkWish, Parked, Parking};

impl Controller {
    pub(super) fn paging_action(&mut self, action: PagingAction, reply: ReplySender) {
        match action {
            PagingAction::Park(wanted) => self.park(wanted, reply),
            PagingAction::Unpark(wanted) => self.unpark(wanted, reply),
            PagingAction::Cancel => reply.send(self.cancel_compaction()),
            PagingAction::Get => reply.send(self.paging_status()),
            PagingAction::Pool => reply.send(self.pool_status()),
        }
    }

    /// Starts parking; the reply is sent at its end or, without `wait`, immediately.
    fn park(&mut self, wanted: Park, reply: ReplySender) {
        let answer = Answer::new(reply);
        let at_the_end = answer.clone();
        let waits = wanted.wait;
        let when_done = Box::new(move |finished: Finished<Parked>| {
            if waits {
                let report = Box::new(ParkReport::from(&finished));
                at_the_end.give(Ok(PagingReply::Parked(report).into()));
            }
        });
        let floor = Bytes::from_mib(wanted.floor_mib).unwrap_or(Bytes(u64::MAX));
        // A guest that is paused cannot give up anything.
        let runs = !wanted.pause && self.phase() == Phase::Running;
        let wish = ParkWish { floor, trim: wanted.trim && runs };
        let started = self.start_paging().and_then(|()| {
            if wanted.pause {
                self.vm()?.pause().map_err(failed)?;
            }
            let (parking, compactor) = self.parking()?;
            parking.park(compactor, wish, when_done).map_err(failed)
        });
        answer.started(started, waits);
    }

    fn unpark(&mut self, wanted: Unpark, reply: ReplySender) {
        let answer = Answer::new(reply);
        if self.parking.is_none() {
            // Nothing has been parked.
            let nothing = PagingReply::Unparked(UnparkReport::default()).into();
            return answer.give(Ok(if wanted.wait { nothing } else { Reply::Done }));
        }
        let at_the_end = answer.clone();
        let waits = wanted.wait;
        let when_done = Box::new(move |finished: Finished<pager::UnparkReport>| {
            if waits {
                at_the_end.give(Ok(PagingReply::Unparked((&finished).into()).into()));
            }
        });
        let started = self
            .parking()
            .and_then(|(parking, compactor)| parking.unpark(compactor, when_done).map_err(failed));
        answer.started(started, waits);
    }

    /// Starts the pager if it does not run.
    pub(super) fn start_paging(&mut self) -> Result<(), Refusal> {
        if self.parking.is_none() {
            let config = self.config.memory.paging.unwrap_or_default();
            let mappings = self.config.memory.mapping_shares(&self.host).parking;
            let (ram, threads) = (self.vm()?.ram(), self.vm()?.host_threads());
            let started = Parking::start(ram, &config, mappings, threads, self.events.exit());
            self.parking = Some(started.map_err(failed)?);
        }
        Ok(())
    }

    /// The pager, and the thread of its operations; both are started on first use.
    fn parking(&mut self) -> Result<(&Parking, &Compactor), Refusal> {
        self.start_paging()?;
        self.compactor()?;
        self.parking.as_ref().zip(self.compactor.as_ref()).ok_or(Refusal::BeforeStart)
    }

    fn paging_status(&self) -> Result<Reply, Refusal> {
        let Some(parking) = &self.parking else {
            return Ok(PagingReply::Status(Box::default()).into());
        };
        let (stats, progress) = (parking.stats(), parking.progress());
        let nanos = |time: Duration| time.as_nanos().saturating_u64();
        Ok(PagingReply::Status(Box::new(PagingStatus {
            active: true,
            operation: progress.operation.map(Into::into),
            done: progress.done,
            planned: progress.planned,
            absent_bytes: stats.absent_bytes,
            staged_bytes: stats.staged_bytes,
            pool_bytes: stats.pool.store.mem_used_total + stats.pool.metadata_bytes,
            hot_blocks: stats.hot_blocks,
            faults: stats.counters.faults,
            fault_p50_ns: nanos(stats.faults.p50),
            fault_p99_ns: nanos(stats.faults.p99),
            counters: (&stats.counters).into(),
            last_park: parking.last_park().as_ref().map(Into::into),
        }))
        .into())
    }

    fn pool_status(&self) -> Result<Reply, Refusal> {
        let pool = self.parking.as_ref().map(|parking| parking.stats().pool);
        Ok(PagingReply::Pool(Box::new(pool.as_ref().map(Into::into).unwrap_or_default())).into())
    }
}

/// A reply that is sent once: by the end of an operation, or by the refusal to begin it.
#[derive(Clone)]
struct Answer(Arc<Mutex<Option<ReplySender>>>);

impl Answer {
    fn new(reply: ReplySender) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    fn give(&self, reply: Result<Reply, Refusal>) {
        if let Some(sender) = super::lock(&self.0).take() {
            sender.send(reply);
        }
    }

    fn started(&self, started: Result<(), Refusal>, waits: bool) {
        match started {
            Err(refusal) => self.give(Err(refusal)),
            Ok(()) if !waits => self.give(Ok(Reply::Done)),
            Ok(()) => {}
        }
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros().saturating_u64()
}

impl From<Operation> for PagingOperation {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Trim => Self::Trim,
            Operation::Park => Self::Park,
            Operation::Unpark => Self::Unpark,
        }
    }
}

impl From<&Finished<Parked>> for ParkReport {
    fn from(Finished { report: Parked { blocks: report, trim }, took }: &Finished<Parked>) -> Self {
        Self {
            trimmed_bytes: trim.as_ref().map_or(0, |trim| trim.given.0),
            trim_ended: trim.as_ref().map(|trim| trim.ended.clone()),
            parked: report.parked,
            kept: report.kept,
            left_pinned: report.left.pinned,
            left_small: report.left.small,
            left_busy: report.left.busy,
            left_wanted: report.left.wanted,
            left_incompressible: report.left.incompressible,
            compacted_bytes: report.compacted.0,
            took_us: micros(*took),
            stopped: report.stopped.clone(),
        }
    }
}

impl From<&Finished<pager::UnparkReport>> for UnparkReport {
    fn from(Finished { report, took }: &Finished<pager::UnparkReport>) -> Self {
        let pager::UnparkReport { returned, left, lost } = *report;
        Self { returned, left, lost, took_us: micros(*took) }
    }
}

impl From<&pager::PagingCounters> for PagingCounters {
    fn from(counters: &pager::PagingCounters) -> Self {
        Self {
            out: counters.blocks_out,
            stored: counters.blocks_stored,
            recalled: counters.blocks_recalled,
            incompressible: counters.blocks_incompressible,
            busy: counters.blocks_busy,
            touched: counters.blocks_touched,
            pages_touched: counters.pages_touched,
            pages_stored: counters.pages_stored,
            prefetched: counters.blocks_prefetched,
            landed_small: counters.blocks_landed_small,
            dropped: counters.blocks_dropped,
            held: counters.faults_held,
            retries: counters.fill_retries,
            lost: counters.blocks_lost,
            compress_ns: counters.compress_ns,
            compress_bytes: counters.compress_bytes,
            repacked: counters.blocks_repacked,
            repack_saved_bytes: counters.repack_saved_bytes,
        }
    }
}

impl From<&pager::PagePoolStats> for PoolStatus {
    fn from(pool: &pager::PagePoolStats) -> Self {
        Self {
            limit_bytes: pool.limit_bytes,
            used_bytes: pool.store.mem_used_total,
            used_max_bytes: pool.store.mem_used_max,
            original_bytes: pool.store.orig_data_size,
            compressed_bytes: pool.store.compr_data_size,
            metadata_bytes: pool.metadata_bytes,
            same_pages: pool.store.same_pages,
            raw_pages: pool.store.huge_pages,
            frames_compacted: pool.store.pages_compacted,
            frames_moved: pool.events.moved,
            fragmentation_permille: pool.fragmentation,
        }
    }
}
