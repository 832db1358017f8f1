// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Empty blocks of a parked guest: without a page in guest memory, and without one at a source.
//!
//! A sleeping guest allocates a page of its free memory now and then. The kernel would allocate a huge
//! page for it, and the block would cost 2 MiB. So while the guest is parked, its empty blocks are
//! registered too: an access brings one zero page, as to any absent block, and once the guest uses the
//! block, the kernel fills it as usual. No contents depend on that: a page that is in guest memory is
//! never touched here.

use crate::units::Bytes;

use super::absence::{Absence, STORE};
use super::pager_engine::{PagerEngine, lock};
use super::states::BlockState;

impl PagerEngine {
    /// Has the pager answer accesses to blocks that are empty now. Without huge pages there is nothing
    /// to save.
    pub(super) fn guard_empty_blocks(&self) {
        if !self.huge {
            return;
        }
        let untouched = |absence: &Absence| absence.is_empty() && absence.pages_back() == 0;
        for index in self.select_absent(untouched) {
            // Memory that the pager did not bring: the guest wrote to a mapping of the shared zero
            // page, which was there before.
            if self.residency_of(index) != Some(Bytes(0)) {
                self.release_empty_block(index);
            }
        }
        let present = self.record().select(|state| *state == BlockState::Present);
        for index in present {
            if self.residency_of(index) == Some(Bytes(0)) && !self.guard_empty(index) {
                tracing::debug!("block {index} is empty and not guarded");
            }
        }
    }

    /// Has the kernel fill all empty blocks again.
    pub(super) fn release_empty_blocks(&self) {
        let empty = self.select_absent(Absence::is_empty);
        empty.into_iter().for_each(|index| self.release_empty_block(index));
    }

    /// Has the kernel fill block `index` again if it is empty. Its pages in guest memory stay there.
    pub(super) fn release_empty_block(&self, index: usize) {
        let mut record = self.record();
        if matches!(record.state(index), BlockState::Absent(absence) if absence.is_empty()) {
            record.emptied(index);
            self.unregister(&mut record, index);
            drop(record);
            self.settled.notify_all();
        }
    }

    fn select_absent(&self, choose: impl Fn(&Absence) -> bool) -> Vec<usize> {
        self.record()
            .select(|state| matches!(state, BlockState::Absent(absence) if choose(absence)))
    }

    /// Registers block `index` if it is still empty then. Whether it is guarded now.
    fn guard_empty(&self, index: usize) -> bool {
        // Nothing is split, collapsed or moved meanwhile.
        let _gate = lock(&self.gate);
        let block = self.areas.block(index).checked_range();
        if block.is_none_or(|block| lock(&self.pinned).intersection(block).next().is_some()) {
            return false;
        }
        let mut record = self.record();
        // Half of the mappings are left for blocks with contents.
        let too_many = record.starts_a_run(index) && record.counts().runs >= self.max_runs / 2;
        if too_many
            || *record.state(index) != BlockState::Present
            || self.register(&mut record, index).is_err()
        {
            return false;
        }
        // A thread that accesses it from now on waits for the pager, which waits for the record.
        if self.residency_of(index) != Some(Bytes(0)) {
            self.unregister(&mut record, index);
            return false;
        }
        record.set_empty(index, STORE);
        true
    }

    /// How much of block `index` is in guest memory; `None` if that is not known.
    fn residency_of(&self, index: usize) -> Option<Bytes> {
        let block = self.areas.block(index).checked_range()?;
        self.ram.residency_of(block).ok().map(|found| found.resident)
    }
}
