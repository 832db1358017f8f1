// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Discards of absent blocks.
//!
//! The balloon, free page reporting and compaction passes give pages back through
//! [`GuestRam`](crate::guest_ram::GuestRam), which comes here first. An absent page is dropped at
//! its source; a block in transit is settled first. The gate is held until the discard is done, so
//! that no block leaves in between.

use std::sync::{MutexGuard, PoisonError};

use crate::blocks::mask::PageMask;
use crate::guest_ram::AbsentMemory;
use crate::units::{Bytes, GuestRange, PAGES_PER_BLOCK};

use super::pager_engine::{PagerEngine, lock};
use super::states::BlockState;
use super::stats::PagerCounters;

impl AbsentMemory for PagerEngine {
    fn hold(&self) -> MutexGuard<'_, ()> {
        lock(&self.gate)
    }

    fn absent(&self) -> Bytes {
        Bytes(self.absent_bytes())
    }

    fn drop_absent(&self, ranges: &[GuestRange]) {
        for &range in ranges {
            for (index, part) in self.areas.touched(range) {
                self.drop_in_block(index, part);
            }
        }
    }

    fn release_empty(&self, range: GuestRange) {
        self.areas.touched(range).for_each(|(index, _)| self.release_empty_block(index));
    }
}

impl PagerEngine {
    /// Drops the pages `part` of block `index` if it is absent. On return the block is settled, and
    /// in place if pages of it must be discarded there. The caller holds the gate.
    fn drop_in_block(&self, index: usize, part: GuestRange) {
        let mut record = self.record();
        loop {
            match record.state(index) {
                BlockState::Present | BlockState::Lost => return,
                BlockState::Absent(absence) => {
                    let source = absence.source();
                    let block = self.areas.block(index);
                    let mask = PageMask::of_range(block, part);
                    // The record is locked, so no thread fills the block.
                    let first = Self::pages(index).start;
                    for run in mask.runs() {
                        self.source(source)
                            .forget(first + run.start as u64..first + run.end as u64);
                    }
                    let had_pages = !absence.is_empty();
                    if !record.drop_pages(index, &mask) {
                        PagerCounters::add(&self.counters.blocks_dropped, had_pages.into());
                        // Else an access costs a page only as long as the block is registered.
                        if !self.huge {
                            record.emptied(index);
                            self.unregister(&mut record, index);
                        }
                    }
                    return;
                }
                BlockState::Out { slot } => {
                    let slot = *slot;
                    let whole = part.pages().0 == PAGES_PER_BLOCK;
                    record.begin_filling(index);
                    drop(record);
                    if !whole {
                        self.move_back(index, slot);
                    }
                    self.outlet.give_back(slot);
                    self.settle(index, |record| record.filled(index));
                    return;
                }
                BlockState::Leaving { .. } | BlockState::Packing { .. } | BlockState::Filling => {
                    self.want(&mut record, index);
                    record = self.settled.wait(record).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl std::fmt::Debug for PagerEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("counts", &self.record().counts()).finish_non_exhaustive()
    }
}
