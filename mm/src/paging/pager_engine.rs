// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! State and operations shared by all threads of the pager.
//!
//! Lock order, outermost first: the gate, the record, then those of the hot set, the outlet, the
//! store. The pager thread never takes the gate, and no thread touches guest memory while holding any
//! lock here: a fault on it may need them all.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::guest_ram::GuestRam;
use crate::range_set::RangeSet;
use crate::sys::idle_work::IdleWork;
use crate::sys::userfault::{Stopped, Userfault};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, HostRange, PAGE_BYTES, PAGE_SIZE, PAGES_PER_BLOCK};

use super::absence::SourceId;
use super::ages::Ages;
use super::areas::Areas;
use super::hot::HotSet;
use super::page_pool::PagePool;
use super::record::Record;
use super::room::Room;
use super::source::{PageSource, SourceError};
use super::staged::StagedBlocks;
use super::staging::Outlet;
use super::states::BlockState;
use super::stats::{Histogram, PagerCounters, PagingStats};

/// Attempts of a move that the kernel asks to repeat, before giving up for now.
pub(super) const TRIES: u32 = 1000;

/// Called when guest memory is lost: the guest cannot continue.
pub type OnLoss = Box<dyn Fn(&SourceError) + Send + Sync>;

/// The state of a guest's pager.
pub(super) struct PagerEngine {
    pub(super) ram: Arc<GuestRam>,
    pub(super) areas: Areas,
    /// Whether guest memory should consist of huge pages.
    pub(super) huge: bool,
    pub(super) uffd: Userfault,
    pub(super) outlet: Arc<Outlet>,
    /// Blocks in the outlet of which the guest gets single pages.
    pub(super) staged: Arc<StagedBlocks>,
    /// The outlet of single pages.
    pub(super) parts: Outlet,
    pub(super) pool: PagePool,
    /// The first is the store, the second the blocks in the outlet.
    pub(super) sources: Vec<Arc<dyn PageSource>>,
    /// Most runs of registered blocks.
    pub(super) max_runs: usize,
    /// Blocks come back ahead of the guest.
    pub(super) reads_ahead: AtomicBool,
    /// What the host can give.
    pub(super) room: Room,
    /// Blocks that came back, in part or whole, since relief last passed them.
    pub(super) recent: Vec<AtomicBool>,
    /// Held while a block is taken out, and while blocks are split, collapsed or discarded: the
    /// kernel must not move a block that another thread is breaking up.
    pub(super) gate: Mutex<()>,
    pub(super) record: Mutex<Record>,
    /// Notified when a block is no longer in transit.
    pub(super) settled: Condvar,
    /// Since when each block has been in the store.
    pub(super) ages: Ages,
    pub(super) hot: Mutex<HotSet>,
    /// Pages that must stay: pinned ones, and others at their owner's request.
    pub(super) pinned: Mutex<RangeSet>,
    /// The thread that compresses in idle time, if one does.
    pub(super) idle: IdleWork,
    pub(super) counters: PagerCounters,
    pub(super) latency: Histogram,
    pub(super) on_loss: OnLoss,
}

impl PagerEngine {
    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// The numbers of the pages of block `index`.
    pub(super) fn pages(index: usize) -> std::ops::Range<u64> {
        let first = index as u64 * PAGES_PER_BLOCK;
        first..first + PAGES_PER_BLOCK
    }

    pub(super) fn source(&self, id: SourceId) -> &dyn PageSource {
        self.sources[usize::from(id.0)].as_ref()
    }

    /// Registers block `index`, within the budget of mappings.
    pub(super) fn register(&self, record: &mut Record, index: usize) -> io::Result<()> {
        if record.is_registered(index) {
            return Ok(());
        }
        if record.starts_a_run(index) && record.counts().runs >= self.max_runs {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.uffd.register(self.areas.host(index))?;
        record.set_registered(index, true);
        Ok(())
    }

    /// Unregisters block `index`, so that the kernel handles its faults, and wakes waiting threads.
    /// If the kernel's limit on mappings is reached, the block stays registered, which costs
    /// nothing until a page of it is discarded and accessed.
    pub(super) fn unregister(&self, record: &mut Record, index: usize) {
        if !record.is_registered(index) {
            return;
        }
        let range = self.areas.host(index);
        match self.uffd.unregister(range) {
            Ok(()) => record.set_registered(index, false),
            Err(error) => {
                tracing::debug!("cannot unregister a block: {error}");
                self.wake(range);
            }
        }
    }

    pub(super) fn wake(&self, range: HostRange) {
        if let Err(error) = self.uffd.wake(range) {
            tracing::error!("cannot wake threads waiting for guest memory: {error}");
        }
    }

    /// Moves what lies at `src` to `dst`, all of it or, after `Err`, some of it.
    ///
    /// # Safety
    /// As for [`Userfault::move_pages`].
    pub(super) unsafe fn transfer(&self, dst: HostRange, src: HostRange) -> Result<(), Stopped> {
        let mut done = 0;
        let mut tries = 0;
        loop {
            let left = dst.len() - done;
            let (to, from) = (dst.slice(done, left), src.slice(done, left));
            let (to, from) = (to.expect("inside"), from.expect("inside"));
            // SAFETY: as promised by the caller.
            let Err(stopped) = (unsafe { self.uffd.move_pages(to, from, true) }) else {
                return Ok(());
            };
            done += stopped.done;
            tries = if stopped.done > 0 { 0 } else { tries + 1 };
            if !stopped.is_transient() || tries > TRIES {
                return Err(stopped);
            }
            if done == dst.len() {
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    /// Moves block `index` from a slot back to its place, retrying without limit: the slot holds
    /// the only copy.
    pub(super) fn move_back(&self, index: usize, slot: usize) {
        self.move_all_back(index, self.areas.host(index), self.outlet.range(slot));
    }

    /// Moves the pages of block `index` that are at `staged` back to their place, retrying without
    /// limit. Pages that are not there, as a move out stopped before them, are in place.
    pub(super) fn move_all_back(&self, index: usize, place: HostRange, staged: HostRange) {
        let mut told = false;
        loop {
            // SAFETY: both are mapped; the record has the block with this thread, so that no
            // reference to the slot exists, and there is never one to guest memory.
            let Err(stopped) = (unsafe { self.transfer(place, staged) }) else { return };
            if stopped.is_present() {
                match self.outlet.pages_at(staged) {
                    // The rest never left.
                    Ok(pages) if pages.is_empty() => return,
                    // Page by page, so that what is in the way keeps back nothing else.
                    Ok(pages) if staged.len() > PAGE_BYTES => {
                        for run in pages.runs().flatten().map(|page| page..page + 1) {
                            self.move_all_back(index, place.pages(run.clone()), staged.pages(run));
                        }
                        return;
                    }
                    _ => {}
                }
                // The page at the destination is newer, so it stays.
                tracing::error!("guest memory was populated while it was parked: {stopped}");
                return;
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("cannot move block {index} back, will retry: {stopped}");
            }
            PagerCounters::add(&self.counters.fill_retries, 1);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Block `index` is in place again: unregisters it and wakes waiting threads.
    /// `note` changes the record.
    pub(super) fn settle(&self, index: usize, note: impl FnOnce(&mut Record)) {
        let mut record = self.record();
        self.unregister(&mut record, index);
        note(&mut record);
        drop(record);
        self.settled.notify_all();
    }

    /// Requests block `index`, which another thread may be moving.
    pub(super) fn want(&self, record: &mut Record, index: usize) {
        if record.want(index)
            && let BlockState::Packing { slot, .. } = *record.state(index)
        {
            self.outlet.recall(slot);
            self.idle.hurry();
        }
    }

    /// What is where.
    pub(super) fn stats(&self) -> PagingStats {
        let counts = self.record().counts();
        let bytes = |blocks: usize| blocks as u64 * BLOCK_SIZE;
        let gone_bytes = counts.pages_gone as u64 * PAGE_SIZE;
        PagingStats {
            absent_bytes: bytes(counts.absent + counts.filling) - gone_bytes,
            gone_bytes,
            staged_bytes: bytes(counts.out),
            lost_bytes: bytes(counts.lost),
            runs: counts.runs as u64,
            hot_blocks: lock(&self.hot).order().len() as u64,
            counters: self.counters.snapshot(),
            faults: self.latency.latency(),
            pool: self.pool.stats(),
        }
    }

    /// Bytes of absent guest memory.
    pub(super) fn absent_bytes(&self) -> u64 {
        let counts = self.record().counts();
        let blocks = counts.absent + counts.out + counts.filling;
        (blocks * BLOCK_BYTES - counts.pages_gone * PAGE_BYTES) as u64
    }
}

/// A panic in another thread leaves these consistent: each change is complete.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
