// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trials of blocks that came back before: the guest gets copies of the pages that it accesses, since
//! many are used in a few pages only. The rest is stored when the trial ends.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::blocks::mask::PageMask;
use crate::sys::thread::cpu_time;
use crate::units::{PAGE_BYTES, SaturatingInto};

use super::absence::{FEW_PAGES, STAGED, STORE};
use super::cold::TrialOutcome;
use super::evict::Stay;
use super::pager_engine::PagerEngine;
use super::record::Record;
use super::states::BlockState;
use super::stats::PagerCounters;

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
    /// staging any more, or if the guest uses more than a few pages of it.
    fn begin_storing(&self, index: usize) -> Option<(usize, PageMask)> {
        let slot = self.staged.slot(index)?;
        let mut record = self.settled_record(index);
        let BlockState::Absent(absence) = record.state(index) else { return None };
        if !absence.is_staged() || absence.pages_back() > FEW_PAGES {
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
            matches!(state, BlockState::Absent(absence) if absence.is_staged())
        };
        let was_there = is_there(&self.settled_record(index));
        if was_there {
            // The guest may wait for it, or for the locks that making it huge takes.
            self.idle.hurry();
        }
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
