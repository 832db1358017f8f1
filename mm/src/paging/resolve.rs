// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bringing blocks back.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::blocks::mask::PageMask;
use crate::sys::thread::cpu_time;
use crate::sys::userfault::Stopped;
use crate::units::{BLOCK_SIZE, Bytes, HostRange, PAGE_BYTES, Pages, SaturatingInto};

use super::absence::{Absence, STAGED, STORE};
use super::pager_engine::{PagerEngine, TRIES};
use super::source::{Content, SourceError};
use super::staging::{Inlet, PAGES};
use super::states::BlockState;
use super::stats::PagerCounters;
use super::wakefulness::Portion;

/// Result of an attempt to bring a block back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillOutcome {
    /// It is back, and waiting threads were woken.
    Done,
    /// The page is back, and with it its neighbours from `start` up to `end`; most of its block is not.
    Page { start: usize, end: usize },
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
                FillOutcome::Done
                | FillOutcome::Page { .. }
                | FillOutcome::Present
                | FillOutcome::Lost => return Ok(()),
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
        if matches!(&before, BlockState::Absent(absence) if absence.is_empty()) {
            // There is nothing to bring: the kernel fills it.
            self.recent[index].store(true, Ordering::Relaxed);
            self.settle(index, |record| record.filled(index));
            return FillOutcome::Present;
        }
        let began = cpu_time();
        let mut before = before;
        let was_out = matches!(before, BlockState::Out { .. });
        let was_staged = matches!(&before, BlockState::Absent(absence) if absence.is_staged());
        let result = match &mut before {
            BlockState::Out { slot } => {
                self.move_back(index, *slot);
                self.outlet.give_back(*slot);
                PagerCounters::add(&self.counters.blocks_returned, 1);
                Ok(())
            }
            BlockState::Absent(absence) => {
                let filled = self.fill(index, absence, inlet);
                if filled.is_err() {
                    inlet.release();
                }
                filled
            }
            other => unreachable!("begin_filling gave {other:?}"),
        };
        let took = (cpu_time() - began).as_nanos().saturating_u64();
        PagerCounters::add(&self.counters.fill_ns, took);
        match result {
            Ok(()) => {
                if let Some(count) = count {
                    PagerCounters::add(count, 1);
                    PagerCounters::add(&self.counters.blocks_returned, was_staged.into());
                }
                self.recent[index].store(true, Ordering::Relaxed);
                if !was_out {
                    self.room.took(Bytes(BLOCK_SIZE));
                }
                self.settle(index, |record| {
                    record.filled(index);
                    if let BlockState::Absent(absence) = before {
                        record.set_used(index, absence.into_used());
                    }
                });
                FillOutcome::Done
            }
            Err(failure) => self.not_filled(index, before, failure),
        }
    }

    /// Brings `portion` of block `index` back, which the guest needs for its access to `page`, if the block
    /// is in the store or in staging, and fewer than `most` of its pages are in place or the guest passes
    /// over it. Otherwise the block, as [`bring_back`](Self::bring_back) does.
    pub(super) fn bring_page_back(
        &self,
        (index, page): (usize, usize),
        (portion, most): (Portion, usize),
        inlet: &mut Inlet,
    ) -> FillOutcome {
        let mut record = self.record();
        let by_page = |state: &BlockState| match state {
            BlockState::Absent(absence) if [STORE, STAGED].contains(&absence.source()) => {
                match portion {
                    Portion::Page | Portion::Pages => absence.pages_back() < most,
                    // What a busy guest allocates comes from the kernel.
                    Portion::Used => absence.pages_back() < most && !absence.is_empty(),
                    // As it comes in small pages anyway, what the guest has passed can stay away.
                    Portion::Up(ahead) | Portion::Down(ahead) => {
                        let in_part = ahead < PAGES || self.huge && absence.pages_back() > 0;
                        in_part && !absence.is_empty()
                    }
                }
            }
            _ => false,
        };
        let taken = by_page(record.state(index)).then(|| record.begin_filling(index)).flatten();
        drop(record);
        let Some(BlockState::Absent(mut absence)) = taken else {
            return self.bring_back(index, inlet, Some(&self.counters.blocks_touched));
        };
        let began = cpu_time();
        let mut pages = PageMask::EMPTY;
        match portion {
            Portion::Pages if self.huge => pages = absence.needed_with(page, false),
            Portion::Used if self.huge => pages = absence.needed_with(page, true),
            Portion::Up(ahead) => pages.set_range(page..PAGES.min(page + ahead)),
            Portion::Down(ahead) => pages.set_range((page + 1).saturating_sub(ahead)..page + 1),
            _ => {}
        }
        let mut pages = pages.intersection(&absence.at_source());
        pages.insert(page);
        let result = self.copy_pages(index, &mut absence, &pages, inlet);
        let took = (cpu_time() - began).as_nanos().saturating_u64();
        PagerCounters::add(&self.counters.fill_ns, took);
        match result {
            Ok(()) => {
                match portion {
                    Portion::Up(_) | Portion::Down(_) => absence.access_all(&pages),
                    _ => absence.access(page),
                }
                PagerCounters::add(&self.counters.pages_touched, 1);
                PagerCounters::add(&self.counters.pages_prefetched, pages.count().0 - 1);
                let from_staging = u64::from(absence.is_staged());
                PagerCounters::add(&self.counters.pages_returned, from_staging);
                self.recent[index].store(true, Ordering::Relaxed);
                self.room.took(pages.count().bytes());
                // Where huge pages are allowed, its holes stay with the pager.
                if absence.is_back() || !self.huge && absence.is_empty() {
                    self.settle(index, |record| {
                        record.filled(index);
                        record.set_used(index, absence.into_used());
                    });
                    return FillOutcome::Done;
                }
                self.record().not_filled(index, BlockState::Absent(absence));
                self.settled.notify_all();
                let run = pages.runs().find(|run| run.contains(&page)).unwrap_or(page..page + 1);
                FillOutcome::Page { start: run.start, end: run.end }
            }
            Err(failure) => self.not_filled(index, BlockState::Absent(absence), failure),
        }
    }

    fn not_filled(&self, index: usize, now: BlockState, failure: FillFailure) -> FillOutcome {
        match failure {
            FillFailure::Now(error) => {
                tracing::debug!("cannot bring block {index} back now: {error}");
                PagerCounters::add(&self.counters.fill_retries, 1);
                self.record().not_filled(index, now);
                self.settled.notify_all();
                FillOutcome::Later
            }
            FillFailure::Source(error) => {
                self.lose(index, &now, &error);
                FillOutcome::Lost
            }
        }
    }

    /// Brings back what the source has of block `index`: a whole block is assembled in staging and
    /// moved into place as a huge page, the rest of a block is copied page by page. `absence`
    /// follows.
    fn fill(
        &self,
        index: usize,
        absence: &mut Absence,
        inlet: &mut Inlet,
    ) -> Result<(), FillFailure> {
        if !self.huge || !absence.is_whole() {
            PagerCounters::add(&self.counters.blocks_landed_small, u64::from(self.huge));
            return self.copy_pages(index, absence, &absence.at_source(), inlet);
        }
        let first = Self::pages(index).start;
        inlet.prepare().map_err(FillFailure::Now)?;
        let source = self.source(absence.source());
        source.read_run(first, inlet.whole_pages()).map_err(FillFailure::Source)?;
        let (place, from) = (self.areas.host(index), inlet.whole());
        // SAFETY: both are mapped; the references that `inlet` gave have ended, and there is never
        // one to guest memory.
        match unsafe { self.transfer(place, from) } {
            Err(stopped) if stopped.is_present() => {
                tracing::warn!("part of an absent block was already populated: {stopped}");
                self.copy_missing(place, from)?;
                inlet.release();
            }
            result => result?,
        }
        source.forget(Self::pages(index));
        Ok(())
    }

    /// Copies `pages` of block `index` into place and drops them at their source, a few at a time;
    /// `absence` has those that are done, also after an error. Of blocks that are never huge, zero
    /// pages stay absent: once the block is in place, the kernel fills them. Other blocks get them:
    /// with holes they could not be made huge again.
    fn copy_pages(
        &self,
        index: usize,
        absence: &mut Absence,
        pages: &PageMask,
        inlet: &mut Inlet,
    ) -> Result<(), FillFailure> {
        let (first, place) = (Self::pages(index).start, self.areas.host(index));
        let (source, at_source) = (self.source(absence.source()), absence.at_source());
        let with_zeroes = self.huge || pages.count() == Pages(1);
        for run in pages.runs().flat_map(|run| pieces(run, Inlet::PIECE)) {
            let mut copied = PageMask::EMPTY;
            copied.set_range(run.clone());
            let scratch = inlet.scratch(run.len());
            let mut written = PageMask::EMPTY;
            for (page, into) in run.clone().zip(scratch) {
                let content = match at_source.contains(page) {
                    true => source.read(first + page as u64, into).map_err(FillFailure::Source)?,
                    false => Content::Zero,
                };
                if with_zeroes && content == Content::Zero {
                    into.fill(0);
                }
                if with_zeroes || content == Content::Written {
                    written.insert(page);
                }
            }
            for part in written.runs() {
                let at = part.start - run.start;
                let from = inlet.scratch_range().pages(at..at + part.len());
                self.copy_run(place.pages(part), from)?;
            }
            source.forget(first + run.start as u64..first + run.end as u64);
            absence.bring_back(&copied);
        }
        Ok(())
    }

    /// Copies `from` to `to`; pages that are there are newer and stay.
    fn copy_run(&self, to: HostRange, from: HostRange) -> Result<(), FillFailure> {
        let (mut done, mut tries) = (0, 0);
        while done < to.len() {
            let left = to.len() - done;
            let at = |range: HostRange| range.slice(done, left).expect("inside");
            // SAFETY: both are mapped; there is no reference to the source now, and never one to
            // guest memory.
            let Err(stopped) = (unsafe { self.uffd.copy(at(to), at(from)) }) else { return Ok(()) };
            done += stopped.done;
            if stopped.is_present() {
                // A thread that waits for it was not woken when it came.
                self.wake(to.slice(done, PAGE_BYTES).expect("inside"));
                done += PAGE_BYTES;
            } else if !stopped.is_transient() || tries > TRIES {
                return Err(stopped.into());
            } else if stopped.done == 0 {
                tries += 1;
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Copies the pages that are not at `place`, page by page; those that are there are newer.
    fn copy_missing(&self, place: HostRange, from: HostRange) -> Result<(), FillFailure> {
        for page in 0..PAGES {
            self.copy_run(place.pages(page..page + 1), from.pages(page..page + 1))?;
        }
        Ok(())
    }

    /// The contents of block `index` are lost: the kernel reports this to any thread that accesses
    /// it, and the pager to the machine's owner. Zeroes in its place would be silent corruption.
    fn lose(&self, index: usize, before: &BlockState, error: &SourceError) {
        tracing::error!("guest memory is lost: {error}");
        PagerCounters::add(&self.counters.blocks_lost, 1);
        let missing = match before {
            BlockState::Absent(absence) => PageMask::FULL.difference(&absence.back()),
            _ => PageMask::FULL,
        };
        let place = self.areas.host(index);
        for run in missing.runs() {
            if let Err(stopped) = self.uffd.poison(place.pages(run)) {
                tracing::error!("cannot signal threads waiting for lost memory: {stopped}");
            }
        }
        self.record().lost(index);
        self.settled.notify_all();
        (self.on_loss)(error);
    }
}

/// `run` in pieces of at most `most` pages.
fn pieces(run: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = run.end;
    run.step_by(most).map(move |start| start..(start + most).min(end))
}
