// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that answers faults.
//!
//! It takes no device's lock and no gate, and does not access guest memory, so a thread that waits
//! for a page is served regardless of the locks it holds. Read-ahead runs only when no fault is
//! waiting, and so does making blocks huge again that came back page by page; that tries the gate
//! and does not wait for it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::sys::thread::block_signals;
use crate::sys::userfault::PageFault;
use crate::units::{HostRange, PAGE_BYTES, SaturatingInto};

use super::absence::MOST_PAGES;
use super::pager_engine::{PagerEngine, lock};
use super::resolve::FillOutcome;
use super::room::Grant;
use super::staging::{Inlet, PAGES};
use super::states::BlockState;
use super::stats::PagerCounters;
use super::wakefulness::{Portion, Wakefulness};

/// Blocks to read ahead after an access to the hot set.
const READ_AHEAD: usize = 8;
/// Delay before a block that could not be brought back is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// Time without a fault after which blocks are made huge again: that takes a third of the time of
/// bringing them back, and a guest at work, which computes between its accesses, needs the processor.
const CALM: Duration = Duration::from_millis(500);
/// From then on, time from one such block to the next.
const PACE: Duration = Duration::from_millis(50);
/// Blocks that wait to be made huge; the host's own daemon finds the others.
const SMALL_BLOCKS: usize = 256;
/// Time without a fault after which the pager releases its staging memory.
const IDLE: Duration = Duration::from_secs(1);

/// The thread's handle; dropping it ends the thread.
pub(super) struct PagerThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl PagerThread {
    /// Starts answering faults.
    pub(super) fn start(engine: Arc<PagerEngine>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut pager = Pager {
            engine,
            stop: Arc::clone(&stop),
            inlet: Inlet::new()?,
            retry: VecDeque::new(),
            tried: Instant::now(),
            ahead: VecDeque::new(),
            small: VecDeque::new(),
            guest: Wakefulness::default(),
        };
        let thread = std::thread::Builder::new().name("pager".into()).stack_size(256 << 10).spawn(
            move || {
                block_signals();
                pager.run();
            },
        )?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for PagerThread {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::error!("cannot stop the pager: {error}");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pager thread panicked");
        }
    }
}

/// The thread.
struct Pager {
    engine: Arc<PagerEngine>,
    stop: Arc<OwnedFd>,
    inlet: Inlet,
    /// Pages that a thread waits for and that could not be brought back yet.
    retry: VecDeque<PageFault>,
    /// When that was tried last.
    tried: Instant,
    /// Blocks to read ahead.
    ahead: VecDeque<usize>,
    /// Blocks that came back in small pages and are to be made huge.
    small: VecDeque<usize>,
    /// How much serves the guest's next access.
    guest: Wakefulness,
}

impl Pager {
    fn run(&mut self) {
        let mut faults: Vec<PageFault> = Vec::new();
        let (mut staging, mut calm) = (true, false);
        loop {
            let timeout = if !self.ahead.is_empty() {
                Some(Duration::ZERO)
            } else if !self.retry.is_empty() {
                Some(RETRY)
            } else if !self.small.is_empty() {
                Some(if calm { PACE } else { CALM })
            } else {
                staging.then_some(IDLE)
            };
            match self.wait(timeout) {
                Ok(Wake::Stop) => return,
                Ok(Wake::Fault) => {}
                Ok(Wake::Nothing) if !self.ahead.is_empty() => self.read_ahead(),
                Ok(Wake::Nothing) if !self.retry.is_empty() => self.try_again(),
                Ok(Wake::Nothing) if !self.small.is_empty() => {
                    calm = true;
                    self.make_huge();
                }
                Ok(Wake::Nothing) => {
                    self.inlet.release();
                    staging = false;
                    continue;
                }
                Err(error) => {
                    tracing::error!("the pager cannot wait for faults: {error}");
                    std::thread::sleep(RETRY);
                }
            }
            if let Err(error) = self.engine.uffd.faults(|fault| faults.push(fault)) {
                tracing::error!("the pager cannot read faults: {error}");
                std::thread::sleep(RETRY);
            }
            staging |= !faults.is_empty();
            calm &= faults.is_empty();
            self.answer(&mut faults);
            // Faults that keep coming must not starve those that wait.
            if !self.retry.is_empty() && self.tried.elapsed() >= RETRY {
                self.try_again();
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<Wake> {
        let uffd = self.engine.uffd.as_fd();
        let mut fds = [
            PollFd::new(&uffd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
        ];
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().saturating_i64(),
            tv_nsec: t.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Wake::Fault),
            Err(error) => return Err(error.into()),
        }
        Ok(match (fds[0].revents().is_empty(), fds[1].revents().is_empty()) {
            (_, false) => Wake::Stop,
            (false, true) => Wake::Fault,
            (true, true) => Wake::Nothing,
        })
    }

    /// Answers `faults`, each page once: several threads may wait for one page, and a thread with a
    /// signal pending reports its fault over and over.
    fn answer(&mut self, faults: &mut Vec<PageFault>) {
        PagerCounters::add(&self.engine.counters.faults, faults.len() as u64);
        if !faults.is_empty() {
            // It may hold a lock of the store that the answer needs.
            self.engine.idle.hurry();
        }
        faults.sort_unstable_by_key(|fault| fault.page);
        faults.dedup_by_key(|fault| fault.page);
        for fault in faults.drain(..) {
            self.answer_one(fault, false);
        }
    }

    /// Answers a fault as far as the host's room allows; with `anyway`, also if there is little.
    fn answer_one(&mut self, fault: PageFault, anyway: bool) {
        let began = Instant::now();
        let engine = Arc::clone(&self.engine);
        let Some(index) = engine.areas.index_of_addr(fault.page) else {
            return answer_stray(&engine, fault);
        };
        let page = (fault.page - engine.areas.host(index).addr()) / PAGE_BYTES;
        let block = PagerEngine::pages(index);
        let number = block.start + page as u64;
        let (staged, takes_memory) = match engine.record().state(index) {
            BlockState::Absent(absence) => (absence.is_staged(), !absence.is_staged()),
            _ => (false, false),
        };
        let grant = if takes_memory { engine.room.grant() } else { Grant::Block };
        let portion = match grant {
            Grant::Block if takes_memory => (self.guest.accessed(began, number), MOST_PAGES),
            // From staging a page more costs little.
            Grant::Block if staged => (self.guest.scan(number).unwrap_or(Portion::Pages), PAGES),
            Grant::Block => (Portion::Page, MOST_PAGES),
            Grant::Page => (Portion::Page, PAGES),
            Grant::PageLater if anyway => (Portion::Page, PAGES),
            Grant::PageLater | Grant::Nothing => {
                PagerCounters::add(&engine.counters.faults_held, 1);
                self.ahead.clear();
                return self.wait_for_room(fault);
            }
        };
        match engine.bring_page_back((index, page), portion, &mut self.inlet) {
            FillOutcome::Page { start, end } => {
                let at = |page: usize| block.start + page as u64;
                self.answered(began.elapsed(), at(start)..at(end));
                if matches!(portion.0, Portion::Up(PAGES) | Portion::Down(PAGES)) {
                    self.used(index);
                }
            }
            FillOutcome::Done => {
                self.answered(began.elapsed(), block);
                self.used(index);
                // Prepare staging while no fault is pending, so that the next block does not wait
                // for zeroed pages.
                if let Err(error) = self.inlet.prepare() {
                    tracing::debug!(
                        "cannot allocate staging memory ahead of the next fault: {error}"
                    );
                }
            }
            FillOutcome::Present => answer_present(&engine, index, fault),
            FillOutcome::Elsewhere => {}
            FillOutcome::Later => self.wait_for_room(fault),
            FillOutcome::Lost => poison(&engine, fault),
        }
    }

    fn answered(&mut self, time: Duration, pages: Range<u64>) {
        self.engine.latency.record(time);
        self.guest.answered(time, pages);
    }

    /// The guest uses block `index`, which is made huge if all of it is there; what it used next the last
    /// time is read ahead.
    fn used(&mut self, index: usize) {
        if self.engine.huge && self.small.len() < SMALL_BLOCKS {
            self.small.push_back(index);
        }
        let most = if self.engine.reads_ahead.load(Ordering::Relaxed) { READ_AHEAD } else { 0 };
        self.ahead.extend(lock(&self.engine.hot).touched(index, most));
    }

    fn wait_for_room(&mut self, fault: PageFault) {
        if !self.retry.iter().any(|waiting| waiting.page == fault.page) {
            self.retry.push_back(fault);
        }
    }

    fn read_ahead(&mut self) {
        let Some(index) = self.ahead.pop_front() else { return };
        if self.engine.room.grant() != Grant::Block {
            return self.ahead.clear();
        }
        let count = &self.engine.counters.blocks_prefetched;
        self.engine.bring_back(index, &mut self.inlet, Some(count));
    }

    fn try_again(&mut self) {
        self.tried = Instant::now();
        // Even without room one is answered each time: the thread that waits for it may be one that
        // others need in order to make room.
        for (nth, fault) in std::mem::take(&mut self.retry).into_iter().enumerate() {
            self.answer_one(fault, nth == 0);
        }
    }

    /// Makes a block huge that came back page by page, if all of its pages are there.
    fn make_huge(&mut self) {
        let Some(index) = self.small.pop_front() else { return };
        // For a moment it takes a block more.
        if self.engine.room.grant() != Grant::Block {
            return;
        }
        if !self.engine.try_make_huge(index) {
            self.small.push_back(index);
        }
    }
}

/// Why [`Pager::wait`] returned.
enum Wake {
    Stop,
    Fault,
    Nothing,
}

fn page(fault: PageFault) -> HostRange {
    HostRange::new(fault.page, PAGE_BYTES).expect("the kernel reports whole pages")
}

/// A fault on a block that is in place: it was brought back since, or the page was discarded or
/// never accessed while still registered, and so is zero.
fn answer_present(engine: &PagerEngine, index: usize, fault: PageFault) {
    let mut record = engine.record();
    if *record.state(index) != BlockState::Present {
        // It has left since. The thread faults again when it is woken, and that is reported.
        drop(record);
        engine.wake(page(fault));
        return;
    }
    engine.unregister(&mut record, index);
    let still = record.is_registered(index);
    drop(record);
    if still && let Err(stopped) = engine.uffd.zero(page(fault)) {
        tracing::debug!("page {:#x} was already populated: {stopped}", fault.page);
    }
    engine.wake(page(fault));
}

/// The contents are lost. Wake waiters again, as poison does not wake threads that fault later.
fn poison(engine: &PagerEngine, fault: PageFault) {
    if let Err(stopped) = engine.uffd.poison(page(fault)) {
        tracing::debug!("page {:#x} is poisoned: {stopped}", fault.page);
    }
    engine.wake(page(fault));
}

/// An unexpected fault outside guest memory; it is resolved with zeroes.
fn answer_stray(engine: &PagerEngine, fault: PageFault) {
    tracing::error!(
        "a fault at {:#x}, {}",
        fault.page,
        if engine.outlet.contains(fault.page) { "in staging" } else { "outside registered memory" }
    );
    if let Err(stopped) = engine.uffd.zero(page(fault)) {
        tracing::debug!("page {:#x} was already populated: {stopped}", fault.page);
    }
    engine.wake(page(fault));
}
