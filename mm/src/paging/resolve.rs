// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bringing blocks back.

use std::io;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::blocks::mask::PageMask;
use crate::store::Page;
use crate::sys::userfault::Stopped;
use crate::units::{HostRange, PAGE_BYTES, SaturatingInto};

use super::pager_engine::PagerEngine;
use super::record::{BlockState, SourceId};
use super::source::{Content, SourceError};
use super::staging::{Inlet, PAGES};
use super::stats::PagerCounters;

/// Result of an attempt to bring a block back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillOutcome {
    /// It is back, and waiting threads were woken.
    Done,
    /// It was there.
    Present,
    /// Another thread is moving it and knows that it is wanted.
    Elsewhere,
    /// Not now: try again later.
    Later,
    /// Its contents are lost.
    Lost,
}

/// Why a block was not filled.
enum FillFailure {
    /// Host memory is short, or there is a temporary obstacle.
    Now(io::Error),
    /// The contents cannot be read; a retry does not help.
    Source(SourceError),
}

impl From<Stopped> for FillFailure {
    fn from(stopped: Stopped) -> Self {
        Self::Now(stopped.source)
    }
}

impl PagerEngine {
    /// Brings block `index` back, retrying without limit.
    pub(super) fn fetch(&self, index: usize) -> io::Result<()> {
        let mut inlet = Inlet::new()?;
        loop {
            match self.bring_back(index, &mut inlet, None) {
                FillOutcome::Done | FillOutcome::Present | FillOutcome::Lost => return Ok(()),
                FillOutcome::Elsewhere => {
                    let record = self.record();
                    let busy = |state: &BlockState| {
                        !matches!(state, BlockState::Present | BlockState::Lost)
                    };
                    if busy(record.state(index)) {
                        let pause = Duration::from_millis(1);
                        drop(self.settled.wait_timeout(record, pause));
                    }
                }
                FillOutcome::Later => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Brings block `index` back if it is absent and not in transit. Adds one to `count` before
    /// anyone can see the block present, so that statistics read then include it.
    pub(super) fn bring_back(
        &self,
        index: usize,
        inlet: &mut Inlet,
        count: Option<&AtomicU64>,
    ) -> FillOutcome {
        let mut record = self.record();
        let Some(before) = record.begin_filling(index) else {
            return match record.state(index) {
                BlockState::Present => FillOutcome::Present,
                BlockState::Lost => FillOutcome::Lost,
                _ => {
                    self.want(&mut record, index);
                    FillOutcome::Elsewhere
                }
            };
        };
        drop(record);
        let began = Instant::now();
        let result = match &before {
            BlockState::Out { slot } => {
                self.move_back(index, *slot);
                self.outlet.give_back(*slot);
                PagerCounters::add(&self.counters.blocks_returned, 1);
                Ok(())
            }
            BlockState::Absent { source, dropped } => {
                let filled = self.fill(index, *source, dropped.as_deref(), inlet);
                if filled.is_ok() {
                    self.source(*source).forget(Self::pages(index));
                } else {
                    inlet.release();
                }
                filled
            }
            other => unreachable!("begin_filling gave {other:?}"),
        };
        let took = began.elapsed().as_nanos().saturating_u64();
        PagerCounters::add(&self.counters.fill_ns, took);
        match result {
            Ok(()) => {
                if let Some(count) = count {
                    PagerCounters::add(count, 1);
                }
                self.settle(index, |record| record.filled(index));
                FillOutcome::Done
            }
            Err(FillFailure::Now(error)) => {
                tracing::debug!("cannot bring block {index} back now: {error}");
                PagerCounters::add(&self.counters.fill_retries, 1);
                self.record().not_filled(index, before);
                self.settled.notify_all();
                FillOutcome::Later
            }
            Err(FillFailure::Source(error)) => {
                self.lose(index, &error);
                FillOutcome::Lost
            }
        }
    }

    /// Assembles block `index` in staging and moves it into place.
    fn fill(
        &self,
        index: usize,
        source: SourceId,
        dropped: Option<&PageMask>,
        inlet: &mut Inlet,
    ) -> Result<(), FillFailure> {
        let first = Self::pages(index).start;
        let source = self.source(source);
        let from = if self.huge && dropped.is_none() {
            inlet.prepare().map_err(FillFailure::Now)?;
            source.read_run(first, inlet.whole_pages()).map_err(FillFailure::Source)?;
            inlet.whole()
        } else {
            let mut scratch: Box<Page> = Box::new([0; PAGE_BYTES]);
            for page in (0..PAGES).filter(|&page| !dropped.is_some_and(|d| d.contains(page))) {
                match source.read(first + page as u64, &mut scratch).map_err(FillFailure::Source)? {
                    Content::Zero => {}
                    Content::Written => {
                        inlet.part(page).copy_from_slice(scratch.as_slice());
                        scratch.fill(0);
                    }
                }
            }
            PagerCounters::add(&self.counters.blocks_landed_small, u64::from(self.huge));
            inlet.parts()
        };
        let place = self.areas.host(index);
        // SAFETY: both are mapped; the references that `inlet` gave have ended, and there is never
        // one to guest memory.
        match unsafe { self.transfer(place, from) } {
            Err(stopped) if stopped.is_present() => {
                tracing::warn!("part of an absent block was already populated: {stopped}");
                let kept = dropped.copied().unwrap_or_default();
                self.copy_missing(place, from, &kept)?;
                inlet.release();
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Copies the pages that are not at `place`, page by page; those that are there are newer.
    fn copy_missing(
        &self,
        place: HostRange,
        from: HostRange,
        not: &PageMask,
    ) -> Result<(), FillFailure> {
        for page in (0..PAGES).filter(|&page| !not.contains(page)) {
            let at = |range: HostRange| range.slice(page * PAGE_BYTES, PAGE_BYTES).expect("inside");
            // SAFETY: as in `fill`.
            match unsafe { self.uffd.copy(at(place), at(from)) } {
                Err(stopped) if !stopped.is_present() => return Err(stopped.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The contents of block `index` are lost: the kernel reports this to any thread that accesses
    /// it, and the pager to the machine's owner. Zeroes in its place would be silent corruption.
    fn lose(&self, index: usize, error: &SourceError) {
        tracing::error!("guest memory is lost: {error}");
        PagerCounters::add(&self.counters.blocks_lost, 1);
        if let Err(stopped) = self.uffd.poison(self.areas.host(index)) {
            tracing::error!("cannot signal threads waiting for lost memory: {stopped}");
        }
        self.record().lost(index);
        self.settled.notify_all();
        (self.on_loss)(error);
    }
}
