// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks of which the guest uses a few pages: on trial they stay in staging, and the guest gets
//! copies of the pages that it accesses. The rest is stored when the trial ends.
//!
//! Such a block is absent, with staging as its source. Its slot is its trial's: it is free again
//! when the trial ends, even if the whole block came back before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::blocks::mask::PageMask;
use crate::store::Page;
use crate::sys::thread::cpu_time;
use crate::units::{PAGE_BYTES, PAGES_PER_BLOCK, SaturatingInto, usize_from};

use super::absence::SourceId;
use super::cold::TrialOutcome;
use super::evict::Stay;
use super::pager_engine::{PagerEngine, STORE, lock};
use super::record::{BlockState, Record};
use super::source::{Content, PageSource, SourceError};
use super::staging::Outlet;
use super::stats::PagerCounters;

/// Their place among the sources.
pub(super) const STAGED: SourceId = SourceId(1);
/// Pages that the guest gets one by one; with the next one it uses the block, which comes back.
pub(super) const FEW_PAGES: usize = 24;

/// The blocks, as a source of their pages.
#[derive(Debug)]
pub(super) struct StagedBlocks {
    outlet: Arc<Outlet>,
    /// The slot of each.
    slots: Mutex<BTreeMap<usize, usize>>,
}

impl StagedBlocks {
    /// In slots of `outlet`.
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        Self { outlet, slots: Mutex::default() }
    }

    /// Notes that block `index` lies in `slot`. `false` if an earlier trial has it still.
    fn hold(&self, index: usize, slot: usize) -> bool {
        let mut slots = lock(&self.slots);
        let free = !slots.contains_key(&index);
        if free {
            slots.insert(index, slot);
        }
        free
    }

    fn slot(&self, index: usize) -> Option<usize> {
        lock(&self.slots).get(&index).copied()
    }

    /// Frees the slot of block `index`, which is not read any more.
    fn release(&self, index: usize) {
        let slot = lock(&self.slots).remove(&index);
        if let Some(slot) = slot {
            self.outlet.give_back(slot);
        }
    }
}

impl PageSource for StagedBlocks {
    fn read(&self, page: u64, into: &mut Page) -> Result<Content, SourceError> {
        let (index, at) = (page / PAGES_PER_BLOCK, page % PAGES_PER_BLOCK);
        let Some(slot) = self.slot(usize_from(index)) else {
            let source = "its slot is gone".into();
            return Err(SourceError { page, from: "staging", source });
        };
        // SAFETY: a block is read here only while it is being filled from staging, and its slot is
        // released only after that. It has all pages: it left as a huge page, and nothing moves away.
        into.copy_from_slice(unsafe { self.outlet.page(slot, usize_from(at)) });
        Ok(Content::Written)
    }
}

impl PagerEngine {
    /// Makes block `index`, which is out in `slot`, absent with staging as its source. `false` if it is
    /// not out any more, or an earlier trial still has a slot for it.
    pub(super) fn stage(&self, index: usize, slot: usize) -> bool {
        let mut record = self.record();
        let is_out = *record.state(index) == BlockState::Out { slot };
        let staged = is_out && self.staged.hold(index, slot);
        if staged {
            record.begin_packing(index, slot);
            record.packed(index, STAGED, true);
        }
        drop(record);
        // Threads that accessed it on its way out try again.
        self.wake(self.areas.host(index));
        staged
    }

    /// Ends the trial of a block in staging: stores what the guest did not access, or brings all of it
    /// back. After an error it is in place.
    pub(super) fn store_staged(&self, index: usize) -> Result<TrialOutcome, Stay> {
        let began = cpu_time();
        let (mut outcome, mut count) = (Ok(TrialOutcome::Wanted), 0);
        if let Some((slot, pages)) = self.begin_storing(index) {
            let pages: Vec<usize> = pages.runs().flatten().collect();
            count = pages.len();
            let packed = self.pack_pages((index, slot), pages, &|| false);
            outcome = self.end_storing(index, packed);
        }
        let took = (cpu_time() - began).as_nanos().saturating_u64();
        PagerCounters::add(&self.counters.compress_ns, took);
        match &outcome {
            Ok(TrialOutcome::Stored | TrialOutcome::Partly(_)) => {
                PagerCounters::add(&self.counters.compress_bytes, (count * PAGE_BYTES) as u64);
                PagerCounters::add(&self.counters.blocks_stored, 1);
                self.ages.stored(index);
            }
            _ => drop(self.bring_staged_back(index)),
        }
        self.staged.release(index);
        outcome
    }

    /// Ends the trial of a block in staging without storing it; whether it was still there.
    pub(super) fn unstage(&self, index: usize) -> bool {
        let was_there = self.bring_staged_back(index);
        self.staged.release(index);
        was_there
    }

    /// The slot of block `index`, and its pages that the guest did not access. `None` if it is not in
    /// staging any more.
    fn begin_storing(&self, index: usize) -> Option<(usize, PageMask)> {
        let slot = self.staged.slot(index)?;
        let mut record = self.settled_record(index);
        let BlockState::Absent(absence) = record.state(index) else { return None };
        if absence.source() != STAGED {
            return None;
        }
        let pages = absence.at_source();
        record.set_storing(index, true);
        Some((slot, pages))
    }

    /// Makes the store the source of block `index`, if it is still in staging, and if `packed` says that
    /// the store has it.
    fn end_storing(&self, index: usize, packed: Result<(), Stay>) -> Result<TrialOutcome, Stay> {
        let mut record = self.settled_record(index);
        let gone = packed.is_ok().then(|| record.stored(index, STORE)).flatten();
        // Under the record's lock: other threads may store the block afterwards.
        self.forget_pages(index, &gone.unwrap_or(PageMask::FULL));
        record.set_storing(index, false);
        drop(record);
        packed.map(|()| match gone {
            None => TrialOutcome::Wanted,
            Some(gone) if gone.is_empty() => TrialOutcome::Stored,
            Some(gone) => TrialOutcome::Partly(gone.count().0 as usize),
        })
    }

    /// The record, with no thread filling block `index`.
    fn settled_record(&self, index: usize) -> MutexGuard<'_, Record> {
        let mut record = self.record();
        while *record.state(index) == BlockState::Filling {
            record = self.settled.wait(record).unwrap_or_else(PoisonError::into_inner);
        }
        record
    }

    /// Brings all of block `index` back, if its source is staging; whether it was. On return nothing
    /// reads its slot.
    fn bring_staged_back(&self, index: usize) -> bool {
        let is_there = |record: &Record| {
            let state = record.state(index);
            matches!(state, BlockState::Absent(absence) if absence.source() == STAGED)
        };
        let was_there = is_there(&self.settled_record(index));
        while is_there(&self.settled_record(index)) {
            if let Err(error) = self.fetch(index) {
                tracing::warn!("cannot bring block {index} back, will retry: {error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if was_there {
            self.try_make_huge(index);
        }
        was_there
    }
}
