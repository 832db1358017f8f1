// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How ballooned pages are discarded on the host and made usable again.

use std::collections::{BTreeSet, VecDeque};

use mm::backing::Discarded;
use mm::guest_ram::GuestRamError;
use mm::units::{BlockId, Bytes, GuestRange, PAGES_PER_BLOCK, Pages, Pfn};

use super::{BATCH, Pool, RUNS};
use crate::balloon::counters::{BalloonCounters, FreePagesOrigin, GivenBack};
use crate::balloon::event_journal::EventJournal;
use crate::balloon::ledger::BlockFill;
use crate::balloon::page_runs::{append, take_pages, whole_blocks};
use crate::virtio::Deadline;

/// Costs of steps, in units of [`Deadline`].
mod cost {
    /// Discarding one run of pages.
    pub(super) const RUN: u64 = 4 << 10;
    /// Discarding one page of a run: looking for it, unmapping it, freeing it.
    pub(super) const PAGE: u64 = 512;
    /// Splitting a huge page for a part of it.
    pub(super) const SPLIT: u64 = 256 << 10;
}

impl Pool {
    /// Discards `ranges`, all RAM, without an entry in the ledger: free pages that the guest
    /// reported or hinted.
    pub(in crate::balloon) fn discard_free(
        &mut self,
        ranges: &[GuestRange],
        origin: FreePagesOrigin,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) {
        deadline.charge(cost_of(ranges));
        let asked = ranges.iter().map(GuestRange::bytes).fold(Bytes(0), Bytes::saturating_add);
        // The guest uses such pages again without notice.
        let safe = self.reclaim.refills();
        self.discard(ranges, asked, safe, journal, |counters| counters.free_pages(origin));
    }

    /// Discards the ballooned pages of `range` again, at most some runs of them; returns the part of
    /// `range` that is left. Does nothing for a driver that may use them without notice: they could
    /// be in use.
    pub(in crate::balloon) fn discard_again(
        &mut self,
        range: GuestRange,
        journal: &mut EventJournal,
    ) -> Result<(Discarded, Option<GuestRange>), GuestRamError> {
        if !self.patient {
            return Ok((Discarded::default(), None));
        }
        let mut runs = Vec::new();
        for part in self.ledger.clip(range) {
            self.ledger.runs_in(part, |run| append(&mut runs, run));
        }
        let left =
            runs.get(RUNS).and_then(|next| GuestRange::from_bounds(next.start(), range.end()));
        runs.truncate(RUNS);
        if runs.is_empty() {
            return Ok((Discarded::default(), None));
        }
        let done = self.reclaim.discard(&runs)?;
        journal.counters.compaction.add(done, whole_blocks(&runs));
        Ok((done, left))
    }

    /// Forbids huge pages in `block` if some of its pages are ballooned; returns whether any are.
    pub(in crate::balloon) fn keep_holes(
        &mut self,
        block: BlockId,
        journal: &mut EventJournal,
    ) -> bool {
        match (self.ledger.fill(block), block.checked_range()) {
            (BlockFill::Empty, _) | (_, None) => false,
            (fill, Some(range)) => {
                if fill == BlockFill::Partial && self.ledger.is_ram(range) {
                    self.page_sizes.forbid(range, self.reclaim.as_mut(), journal);
                }
                true
            }
        }
    }

    /// Discards pending pages in the first of `blocks` (ascending): as many as `deadline` allows,
    /// and at least one. Scattered pages end the step early, also within a block.
    pub(in crate::balloon) fn discard_some(
        &mut self,
        blocks: &mut VecDeque<BlockId>,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) {
        let mut runs = std::mem::take(&mut self.runs);
        let mut cut = Vec::new();
        let before = self.ledger.pending().0;
        let (mut cost, mut count) = (0, 0);
        while count < BATCH
            && (count == 0 || (cost < deadline.left() && runs.len() < RUNS))
            && let Some(block) = blocks.pop_front()
        {
            count += 1;
            cost += cost::RUN;
            if !self.ledger.has_pending(block) {
                continue;
            }
            if self.ledger.fill(block) == BlockFill::Partial {
                cost += cost::SPLIT;
                if !self.page_sizes.is_small(block) {
                    cut.push(block);
                }
            }
            match self.full_unit(block) {
                Some(unit) => {
                    self.ledger.take_pending(block, usize::MAX, |_| {});
                    if runs.last().is_none_or(|last| !last.covers(&unit)) {
                        append(&mut runs, unit);
                    }
                }
                None => {
                    let most = RUNS.saturating_sub(runs.len());
                    let left = self.ledger.take_pending(block, most, |run| {
                        cost += cost_of(&[run]);
                        append(&mut runs, run);
                    });
                    if left {
                        blocks.push_front(block);
                        break;
                    }
                }
            }
        }
        deadline.charge(cost);
        if self.may_give_back() {
            self.set_huge(&cut, false, journal);
        }
        // Smaller than the runs if parts of a full block were discarded before.
        let asked = Pages(before - self.ledger.pending().0).bytes();
        let safe = self.may_give_back();
        self.discard(&runs, asked, safe, journal, |counters| &mut counters.inflation);
        runs.clear();
        self.runs = runs;
    }

    /// The host's discard unit around `block`, if it is larger than a block and entirely in the
    /// balloon.
    fn full_unit(&self, block: BlockId) -> Option<GuestRange> {
        let unit = self.unit();
        if unit.0 <= PAGES_PER_BLOCK {
            return None;
        }
        let start = block.checked_range()?.start().0;
        let around = GuestRange::new(Pfn(start - start % unit.0), unit)?;
        let full = self.ledger.is_ram(around) && self.ledger.count(around) == unit;
        full.then_some(around)
    }

    /// Whether pages may be discarded: not if the host might be out of memory when a driver uses
    /// them again without notice.
    fn may_give_back(&self) -> bool {
        self.patient || self.reclaim.refills()
    }

    /// Makes `ranges` usable again; false if the host has no memory for them now.
    pub(in crate::balloon) fn restore(
        &mut self,
        ranges: &[GuestRange],
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) -> bool {
        if self.reclaim.refills() {
            return true;
        }
        for range in ranges {
            deadline.charge(Deadline::ENTRY);
            match self.reclaim.restore(*range) {
                Ok(allocated) => deadline.charge(allocated.0),
                Err(error) if error.is_out_of_memory() => {
                    journal.warn(format_args!("the guest waits for {range}: {error}"));
                    return false;
                }
                Err(error) => journal.warn(format_args!("cannot populate {range}: {error}")),
            }
        }
        true
    }

    /// Allows or forbids huge pages in the first of `blocks` (ascending), by their current
    /// contents: a guest that accesses pages which it took out of a block must not fill the block's
    /// holes.
    pub(in crate::balloon) fn resize_some(
        &mut self,
        blocks: &mut VecDeque<BlockId>,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) {
        let (mut forbid, mut allow) = (Vec::new(), Vec::new());
        let mut cost = 0;
        while cost < deadline.left()
            && allow.len() + forbid.len() < RUNS
            && let Some(block) = blocks.pop_front()
        {
            cost += Deadline::ENTRY;
            let small = self.page_sizes.is_small(block);
            match self.ledger.fill(block) {
                BlockFill::Empty if small => allow.push(block),
                BlockFill::Partial if !small && self.ledger.has_given_back(block) => {
                    forbid.push(block)
                }
                _ => continue,
            }
            cost += Deadline::SYSCALL;
        }
        deadline.charge(cost);
        self.set_huge(&forbid, false, journal);
        // Neighbours that could not be changed before may now cost no extra mapping.
        let around = allow.iter().flat_map(|block| block.0.saturating_sub(1)..=block.0 + 1);
        let around: BTreeSet<BlockId> = around.map(BlockId).collect();
        let allow: Vec<BlockId> = around
            .into_iter()
            .filter(|b| self.page_sizes.is_small(*b) && self.ledger.fill(*b) == BlockFill::Empty)
            .collect();
        self.set_huge(&allow, true, journal);
    }

    /// Discards `runs`, in which the guest gave up `asked` now, if that is `safe`.
    fn discard(
        &mut self,
        runs: &[GuestRange],
        asked: Bytes,
        safe: bool,
        journal: &mut EventJournal,
        counter: impl Fn(&mut BalloonCounters) -> &mut GivenBack,
    ) {
        if runs.is_empty() {
            return;
        }
        if !safe {
            let kept = Discarded { asked, held: asked, ..Discarded::default() };
            return counter(&mut journal.counters).add(kept, 0);
        }
        match self.reclaim.discard(runs) {
            Ok(done) => {
                let done = Discarded { asked, ..done };
                counter(&mut journal.counters).add(done, whole_blocks(runs));
            }
            Err(error) => {
                let counter = counter(&mut journal.counters);
                counter.add(Discarded { asked, ..Discarded::default() }, 0);
                counter.fails += 1;
                journal.warn(format_args!("cannot give memory back: {error}"));
            }
        }
    }

    /// Allows or forbids huge pages in those of `blocks` (ascending) that are entirely RAM.
    fn set_huge(&mut self, blocks: &[BlockId], allow: bool, journal: &mut EventJournal) {
        let mut runs: Vec<GuestRange> = Vec::new();
        for block in blocks {
            if let Some(range) = block.checked_range()
                && self.ledger.is_ram(range)
            {
                append(&mut runs, range);
            }
        }
        for run in runs {
            if allow {
                self.page_sizes.allow(run, self.reclaim.as_mut(), journal);
            } else {
                self.page_sizes.forbid(run, self.reclaim.as_mut(), journal);
            }
        }
    }
}

/// Takes the free pages to discard in one step off the front of `queue`: as many as `deadline`
/// allows, and at least a block, where its pages are not scattered.
pub(in crate::balloon) fn take_step(
    queue: &mut VecDeque<GuestRange>,
    deadline: &Deadline,
) -> Vec<GuestRange> {
    let most = BATCH as u64 * PAGES_PER_BLOCK;
    let pages = (deadline.left() / cost::PAGE).clamp(PAGES_PER_BLOCK, most);
    take_pages(queue, Pages(pages), RUNS)
}

/// Cost of discarding `runs`, in units of [`Deadline`].
fn cost_of(runs: &[GuestRange]) -> u64 {
    runs.iter().map(|run| cost::RUN + run.pages().0 * cost::PAGE).sum()
}
