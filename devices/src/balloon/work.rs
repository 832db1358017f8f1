// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Remaining work for one buffer before it is returned to the driver, in steps that a deadline can
//! interrupt anywhere.

use std::collections::VecDeque;

use mm::units::{BlockId, GuestRange};

use super::counters::FreePagesOrigin;
use super::event_journal::EventJournal;
use super::page_runs::take_pages;
use super::pool::{self, Pool};
use crate::virtio::Deadline;

/// Progress of one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferStep {
    /// All was done.
    Done,
    /// The deadline passed first.
    More,
    /// The host has no memory for the guest now: retry later.
    Wait,
}

/// The steps that are left. Each list is worked off from the front; all ascend.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Blocks whose pending pages go back to the host.
    discard: VecDeque<BlockId>,
    /// Free pages to discard, and the queue that named them.
    free: VecDeque<GuestRange>,
    origin: FreePagesOrigin,
    /// Pages that the guest takes back and that the host must allocate first.
    restore: VecDeque<GuestRange>,
    /// Blocks where huge pages may have to be allowed or forbidden.
    resize: VecDeque<BlockId>,
}

impl Work {
    /// Discards pending pages in `blocks`.
    pub(super) fn discard(blocks: impl IntoIterator<Item = BlockId>) -> Self {
        Self { discard: blocks.into_iter().collect(), ..Self::default() }
    }

    /// Discards free pages.
    pub(super) fn free(
        ranges: impl IntoIterator<Item = GuestRange>,
        origin: FreePagesOrigin,
    ) -> Self {
        Self { free: ranges.into_iter().collect(), origin, ..Self::default() }
    }

    /// Returns `ranges` to the guest and rechecks the page size of `blocks`.
    pub(super) fn release(
        ranges: impl IntoIterator<Item = GuestRange>,
        blocks: impl IntoIterator<Item = BlockId>,
    ) -> Self {
        let (restore, resize) = (ranges.into_iter().collect(), blocks.into_iter().collect());
        Self { restore, resize, ..Self::default() }
    }

    /// Works until all is done, the deadline passes or the host has no memory.
    pub(super) fn run(
        &mut self,
        pool: &mut Pool,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) -> BufferStep {
        while !self.discard.is_empty() {
            if deadline.passed() {
                return BufferStep::More;
            }
            pool.discard_some(&mut self.discard, journal, deadline);
        }
        while !self.free.is_empty() {
            if deadline.passed() {
                return BufferStep::More;
            }
            let step = pool::take_step(&mut self.free, deadline);
            pool.discard_free(&step, self.origin, journal, deadline);
        }
        while !self.restore.is_empty() {
            if deadline.passed() {
                return BufferStep::More;
            }
            // One range: each may be in a huge page of its own, which the host clears.
            let step = take_pages(&mut self.restore, pool.unit(), 1);
            if !pool.restore(&step, journal, deadline) {
                step.into_iter().rev().for_each(|range| self.restore.push_front(range));
                return BufferStep::Wait;
            }
        }
        while !self.resize.is_empty() {
            if deadline.passed() {
                return BufferStep::More;
            }
            pool.resize_some(&mut self.resize, journal, deadline);
        }
        BufferStep::Done
    }

    /// Blocks whose pending pages are still to be discarded.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.discard.iter().copied()
    }

    /// Pages that the guest waits for.
    pub(super) fn restoring(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.restore.iter().copied()
    }
}
