// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking single pages out again: those of an absent block that came back on access.
//!
//! They are small pages, so they leave through an outlet of their own: a slot that has held small
//! pages takes no huge page any more. The block is with this thread until they are stored; a thread
//! that accesses one of them meanwhile waits and is woken at the end.

use crate::blocks::mask::PageMask;
use crate::sys::thread::cpu_time;
use crate::sys::userfault::Stopped;
use crate::units::{HostRange, SaturatingInto};

use super::absence::{Absence, STORE};
use super::evict::Stay;
use super::pager_engine::{PagerEngine, lock};
use super::states::BlockState;
use super::stats::PagerCounters;

impl PagerEngine {
    /// Stores the pages of absent block `index` that are in guest memory. After an error they are
    /// in place.
    pub(super) fn take_pages_out(&self, index: usize) -> Result<(), Stay> {
        let gate = lock(&self.gate);
        let block = self.areas.block(index).checked_range().expect("a block of RAM");
        if lock(&self.pinned).intersection(block).next().is_some() {
            return Err(Stay::Pinned);
        }
        let slot = self.parts.take().ok_or(Stay::NoSlot)?;
        let Some(mut absence) = self.begin_taking_pages(index) else {
            self.parts.give_back(slot);
            return Err(Stay::Away);
        };
        let began = cpu_time();
        let pages = absence.back();
        let moved = self.move_runs(&pages, self.parts.range(slot), self.areas.host(index));
        drop(gate);
        let packed = match moved {
            Ok(()) => self.pack_parts(index, slot, &pages),
            Err(stopped) => {
                tracing::debug!("pages of block {index} stay: {stopped}");
                PagerCounters::add(&self.counters.blocks_busy, 1);
                Err(Stay::Busy)
            }
        };
        match &packed {
            Ok(gone) => {
                absence.take_back(gone);
                self.ages.stored(index);
                let took = (cpu_time() - began).as_nanos().saturating_u64();
                PagerCounters::add(&self.counters.compress_ns, took);
                let bytes = pages.count().bytes().0;
                PagerCounters::add(&self.counters.compress_bytes, bytes);
                let stored = pages.count().0.saturating_sub(gone.count().0);
                PagerCounters::add(&self.counters.pages_stored, stored);
            }
            Err(_) => self.put_pages_back(index, slot, &pages),
        }
        self.record().not_filled(index, BlockState::Absent(absence));
        // Threads that accessed the block meanwhile try again.
        self.wake(self.areas.host(index));
        self.settled.notify_all();
        self.parts.give_back(slot);
        packed.map(drop)
    }

    /// Takes block `index` over if it is in the store, and pages of it are in guest memory.
    fn begin_taking_pages(&self, index: usize) -> Option<Absence> {
        let mut record = self.record();
        let is_partly_back =
            |absence: &Absence| absence.source() == STORE && absence.pages_back() > 0;
        if !matches!(record.state(index), BlockState::Absent(absence) if is_partly_back(absence))
            || record.is_storing(index)
        {
            return None;
        }
        match record.begin_filling(index) {
            Some(BlockState::Absent(absence)) => Some(absence),
            other => unreachable!("an absent block was {other:?}"),
        }
    }

    /// Moves `pages` from one block to another.
    fn move_runs(&self, pages: &PageMask, to: HostRange, from: HostRange) -> Result<(), Stopped> {
        pages.runs().try_for_each(|run| {
            let (to, from) = (to.pages(run.clone()), from.pages(run));
            // SAFETY: both are mapped; this thread holds the slot and has no reference to it, and
            // there are never references to guest memory.
            unsafe { self.transfer(to, from) }
        })
    }

    /// Stores `pages`, which lie in `slot`; returns those that are not there, and so are zero.
    fn pack_parts(&self, index: usize, slot: usize, pages: &PageMask) -> Result<PageMask, Stay> {
        let resident = self.parts.resident(slot)?;
        let there: Vec<usize> = pages.intersection(&resident).runs().flatten().collect();
        // SAFETY: this thread holds the slot until its pages are stored or put back, and these are
        // there.
        let packed = unsafe { self.pack_from(&self.parts, (index, slot), &there) };
        if let Err(stay) = packed {
            self.forget_pages(index, pages);
            return Err(stay);
        }
        Ok(pages.difference(&resident))
    }

    /// Drops `pages` of block `index` in the store.
    pub(super) fn forget_pages(&self, index: usize, pages: &PageMask) {
        let first = Self::pages(index).start;
        for run in pages.runs() {
            self.sources[0].forget(first + run.start as u64..first + run.end as u64);
        }
    }

    /// Moves what is in `slot` back, retrying without limit: the slot holds the only copy.
    fn put_pages_back(&self, index: usize, slot: usize, pages: &PageMask) {
        let (place, staged) = (self.areas.host(index), self.parts.range(slot));
        for run in pages.runs() {
            self.move_all_back(index, place.pages(run.clone()), staged.pages(run));
        }
    }
}
