// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where huge pages are forbidden: in blocks with ballooned pages and others, or the next touch (or
//! khugepaged) would fill the holes again.
//!
//! Each run of such blocks costs the process two more mappings, of which it has 65,530 by default.
//! So they are charged to a budget. If it is used up, a block stays unchanged and is counted as
//! *unguarded*: its holes may be filled until a compaction pass finds them.

use std::sync::Arc;

use mm::budget::{Budget, Charge};
use mm::range_set::RangeSet;
use mm::units::{BlockId, GuestRange};

use super::event_journal::EventJournal;
use super::memory_reclaim::MemoryReclaim;

/// Mappings that a run of blocks costs: one boundary before it and one after it.
const MAPPINGS_PER_RUN: u64 = 2;

/// The blocks where huge pages are forbidden.
#[derive(Debug)]
pub(super) struct PageSizes {
    forbidden: RangeSet,
    charge: Charge,
}

impl PageSizes {
    /// Huge pages are initially allowed everywhere; the mappings for forbidding them are charged to
    /// `mappings`.
    pub(super) fn new(mappings: &Arc<Budget>) -> Self {
        let charge = mappings.try_charge(0).expect("nothing is always granted");
        Self { forbidden: RangeSet::new(), charge }
    }

    /// Whether huge pages are forbidden in `block`.
    pub(super) fn is_small(&self, block: BlockId) -> bool {
        block.checked_range().is_some_and(|range| self.forbidden.contains(range.start()))
    }

    /// The runs of blocks where huge pages are forbidden, in ascending order.
    pub(super) fn small_runs(&self) -> Vec<GuestRange> {
        self.forbidden.iter().collect()
    }

    /// Forbids huge pages in `run`, whole blocks of RAM that are all forbidden already or all not, if
    /// that is within the budget.
    pub(super) fn forbid(
        &mut self,
        run: GuestRange,
        reclaim: &mut dyn MemoryReclaim,
        journal: &mut EventJournal,
    ) {
        if self.forbidden.covers(run) {
            // The host may have allowed them itself.
            let _ = reclaim.allow_huge(run, false);
            return;
        }
        self.forbidden.insert(run);
        let result = self
            .pay()
            .map_err(|error| error.to_string())
            .and_then(|()| reclaim.allow_huge(run, false).map_err(|error| error.to_string()));
        if let Err(error) = result {
            self.forbidden.remove(run);
            let _ = self.pay();
            journal.counters.unguarded_blocks += run.whole_blocks().count() as u64;
            journal.warn(format_args!("cannot forbid huge pages in {run}: {error}"));
        }
    }

    /// Allows huge pages in `run`, whole blocks of RAM, if that is within the budget: splitting a
    /// longer run costs more mappings than before.
    pub(super) fn allow(
        &mut self,
        run: GuestRange,
        reclaim: &mut dyn MemoryReclaim,
        journal: &mut EventJournal,
    ) {
        let before: Vec<GuestRange> = self.forbidden.intersection(run).collect();
        self.forbidden.remove(run);
        let result = self
            .pay()
            .map_err(|error| error.to_string())
            .and_then(|()| reclaim.allow_huge(run, true).map_err(|error| error.to_string()));
        if let Err(error) = result {
            before.into_iter().for_each(|part| {
                self.forbidden.insert(part);
            });
            let _ = self.pay();
            journal.warn(format_args!("cannot allow huge pages in {run} again: {error}"));
        }
    }

    /// Charges the current cost of the runs.
    fn pay(&mut self) -> Result<(), mm::budget::BudgetError> {
        self.charge.resize(self.forbidden.len() as u64 * MAPPINGS_PER_RUN)
    }
}
