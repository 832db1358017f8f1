// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When ballooned pages are given back to the host.
//!
//! A huge page of the host is free only when the last of its 512 pages is. Discarding single pages
//! as they come would split one huge page after the other for blocks that are about to be given up
//! wholly, at a hundred times the cost. So a page that goes into the balloon is *pending* first:
//!
//! ```text
//! inflate ─▶ pending ─┬─ its block is full ───────────────▶ given back as one, at once
//!                     ├─ nothing new in its block for a while, or the balloon has reached its
//!                     │  target ─▶ given back singly; huge pages are forbidden in the block,
//!                     │  or the next touch would fill the holes again
//!                     └─ deflate ─▶ nothing to do: the host never lost the page
//! ```
//!
//! Waiting is safe only with a driver that tells before it uses a page again (MUST_TELL_HOST):
//! with another, a page might be in use when its turn comes, and its contents would be lost. For
//! such a driver everything is given back before the inflate request is answered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mm::backing::Discarded;
use mm::blocks::page_set::PageSet;
use mm::guest_ram::GuestRamError;
use mm::units::{BlockId, Bytes, GuestRange, Pages};

use super::counters::{Counters, GivenBack};
use super::ledger::{Fill, Ledger};
use super::reclaim::MemoryReclaim;
use crate::throttle::Throttle;

/// A block waits for more of its pages for this long at least, and twice as long at most.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// Blocks given back between two looks at the clock.
const BATCH: usize = 16;

/// The balloon's pages, and the memory behind them.
pub(super) struct Pool {
    pub(super) ledger: Ledger,
    pub(super) counters: Counters,
    /// Pages that the guest reported free and has not given up since. It may be using them again:
    /// that shows in the page table.
    reported: PageSet,
    reclaim: Box<dyn MemoryReclaim>,
    /// Whether pages may wait: the driver tells before it uses one again.
    patient: bool,
    /// Blocks with pending pages that something was added to since the last tick.
    fresh: BTreeSet<BlockId>,
    /// The same, of the tick before.
    aging: BTreeSet<BlockId>,
    /// Blocks with pending pages whose turn it is.
    due: BTreeSet<BlockId>,
    /// Blocks touched by the buffer being handled.
    touched: BTreeSet<BlockId>,
    runs: Vec<GuestRange>,
    log: Throttle,
}

impl Pool {
    pub(super) fn new(reclaim: Box<dyn MemoryReclaim>) -> Self {
        Self {
            ledger: Ledger::new(&reclaim.ram()),
            counters: Counters::default(),
            reported: PageSet::new(),
            reclaim,
            patient: false,
            fresh: BTreeSet::new(),
            aging: BTreeSet::new(),
            due: BTreeSet::new(),
            touched: BTreeSet::new(),
            runs: Vec::new(),
            log: Throttle::default(),
        }
    }

    /// Whether pages may wait to be given back; see the head of this file.
    pub(super) fn set_patient(&mut self, patient: bool) {
        self.patient = patient;
    }

    /// Puts the RAM of `range` into the balloon; returns the pages that were new to it.
    pub(super) fn inflate(&mut self, range: GuestRange) -> Pages {
        let mut new = 0;
        let parts: Vec<GuestRange> = self.ledger.clip(range).collect();
        for part in parts {
            new += self.enter(part);
            self.touched.extend(part.touched_blocks());
        }
        self.counters.inflated_pages += new;
        self.counters.refused_pages += range.pages().0 - new;
        Pages(new)
    }

    /// Notes that `ram` is in the balloon; returns how many of its pages were new to it.
    fn enter(&mut self, ram: GuestRange) -> u64 {
        if self.reported.pages() > Pages(0) {
            self.reported.remove_range(ram);
        }
        self.ledger.inflate(ram).0
    }

    /// Takes the RAM of `range` out of the balloon; returns the pages that were in it.
    pub(super) fn deflate(&mut self, range: GuestRange) -> Pages {
        let pending = self.ledger.pending().0;
        let mut gone = 0;
        let parts: Vec<GuestRange> = self.ledger.clip(range).collect();
        for part in parts {
            gone += self.ledger.deflate(part).0;
            self.touched.extend(part.touched_blocks());
        }
        self.counters.deflated_pages += gone;
        self.counters.spared_pages += pending - self.ledger.pending().0;
        self.counters.refused_pages += range.pages().0 - gone;
        Pages(gone)
    }

    /// Puts `blocks` (ascending) into the balloon, none of whose pages is in it, and gives them back.
    pub(super) fn inflate_blocks(&mut self, blocks: &[(BlockId, GuestRange)]) {
        for (_, range) in blocks {
            self.counters.inflated_pages += self.enter(*range);
        }
        let blocks: Vec<BlockId> = blocks.iter().map(|(block, _)| *block).collect();
        self.counters.inflated_blocks += blocks.len() as u64;
        self.give_back(&blocks);
    }

    /// Takes `blocks` (ascending) out of the balloon, all of whose pages are in it.
    pub(super) fn deflate_blocks(&mut self, blocks: &[(BlockId, GuestRange)]) {
        for (_, range) in blocks {
            self.counters.deflated_pages += self.ledger.deflate(*range).0;
        }
        let small = blocks.iter().map(|(block, _)| *block).filter(|b| self.ledger.is_small(*b));
        let small: Vec<BlockId> = small.collect();
        self.counters.deflated_blocks += blocks.len() as u64;
        self.set_huge(&small, true);
    }

    /// Ends an inflate request, before it is answered: what need not wait is given back.
    pub(super) fn settle_inflate(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        let mut now = Vec::new();
        for block in touched {
            if !self.patient || self.ledger.fill(block) == Fill::Full {
                self.withdraw(block);
                now.push(block);
            } else if self.ledger.has_pending(block) {
                self.withdraw(block);
                self.fresh.insert(block);
            }
        }
        self.give_back(&now);
    }

    /// Ends a deflate request, before it is answered: where huge pages are allowed is set right.
    pub(super) fn settle_deflate(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        let (mut forbid, mut allow) = (Vec::new(), Vec::new());
        for block in touched {
            let small = self.ledger.is_small(block);
            match self.ledger.fill(block) {
                Fill::Empty if small => allow.push(block),
                // The guest may touch the pages that it got back: they must come back alone.
                Fill::Partial if !small && self.ledger.has_given_back(block) => forbid.push(block),
                _ => {}
            }
            if !self.ledger.has_pending(block) {
                self.withdraw(block);
            }
        }
        self.set_huge(&forbid, false);
        self.set_huge(&allow, true);
    }

    /// Whether pages wait to be given back.
    pub(super) fn waiting(&self) -> bool {
        !self.fresh.is_empty() || !self.aging.is_empty() || !self.due.is_empty()
    }

    /// Whether some of them are due now.
    pub(super) fn due(&self) -> bool {
        !self.due.is_empty()
    }

    /// [`PATIENCE`] has passed: blocks that nothing was added to in all of it are due.
    pub(super) fn tick(&mut self) {
        self.due.append(&mut self.aging);
        std::mem::swap(&mut self.aging, &mut self.fresh);
    }

    /// The guest has given all that it was asked for: there is nothing to wait for.
    pub(super) fn hurry(&mut self) {
        self.due.append(&mut self.aging);
        self.due.append(&mut self.fresh);
    }

    /// Gives back what is due, until `deadline`; the rest stays due.
    pub(super) fn work(&mut self, deadline: Instant) {
        while !self.due.is_empty() {
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH
                && let Some(block) = self.due.pop_first()
            {
                batch.push(block);
            }
            self.give_back(&batch);
            if Instant::now() >= deadline {
                break;
            }
        }
    }

    /// The driver is gone: what it had given up is the guest's again, and nothing of it may be
    /// discarded from here on.
    pub(super) fn forget(&mut self) {
        self.ledger.clear();
        self.reported = PageSet::new();
        self.fresh.clear();
        self.aging.clear();
        self.due.clear();
        self.touched.clear();
        let small: Vec<BlockId> = self.ledger.small_blocks().collect();
        self.set_huge(&small, true);
    }

    /// Discards the RAM of `ranges` (ascending, disjoint) without a word in the ledger: free pages
    /// that the guest reported or hinted.
    pub(super) fn discard_free(
        &mut self,
        ranges: impl Iterator<Item = GuestRange>,
        counter: fn(&mut Counters) -> &mut GivenBack,
    ) {
        let mut runs = std::mem::take(&mut self.runs);
        for range in ranges {
            runs.extend(self.ledger.clip(range));
        }
        let asked = runs.iter().map(GuestRange::bytes).fold(Bytes(0), Bytes::saturating_add);
        self.discard(&runs, asked, counter);
        runs.clear();
        self.runs = runs;
    }

    /// Remembers the RAM of `ranges` as reported free.
    pub(super) fn note_reported(&mut self, ranges: impl Iterator<Item = GuestRange>) {
        for range in ranges {
            for part in self.ledger.clip(range) {
                self.reported.insert_range(part);
            }
        }
    }

    /// Pages that the guest reported free and has not given up since.
    pub(super) fn reported(&self) -> &PageSet {
        &self.reported
    }

    /// Recounts; every pending page must be on its way back.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.ledger.validate()?;
        let listed = |block: &BlockId| {
            self.fresh.contains(block) || self.aging.contains(block) || self.due.contains(block)
        };
        let mut blocks = self.ledger.pending_blocks();
        if let Some(lost) = blocks.find(|block| !listed(block)) {
            return Err(format!("{lost} has pending pages and nobody will give them back"));
        }
        let mut small = self.ledger.small_blocks();
        match small.find(|block| self.ledger.fill(*block) == Fill::Empty) {
            Some(block) => Err(format!("{block} is empty, and huge pages are forbidden in it")),
            None => Ok(()),
        }
    }

    fn withdraw(&mut self, block: BlockId) {
        self.fresh.remove(&block);
        self.aging.remove(&block);
        self.due.remove(&block);
    }

    /// Gives back the ballooned pages of `range`, whether that was done before or not. None for a
    /// driver that may use them without a word: they could be in use.
    pub(super) fn discard_again(&mut self, range: GuestRange) -> Result<Discarded, GuestRamError> {
        if !self.patient {
            return Ok(Discarded::default());
        }
        let mut runs = Vec::new();
        for part in self.ledger.clip(range) {
            self.ledger.runs_in(part, |run| append(&mut runs, run));
        }
        if runs.is_empty() {
            return Ok(Discarded::default());
        }
        let whole = runs.iter().map(|run| run.whole_blocks().count() as u64).sum();
        let done = self.reclaim.discard(&runs)?;
        self.counters.compaction.add(done, whole);
        Ok(done)
    }

    /// Gives back again what `block` has in the balloon, and forbids huge pages in it, as the host
    /// has allowed them; whether it has anything in the balloon.
    pub(super) fn keep_holes(&mut self, block: BlockId) -> Result<bool, GuestRamError> {
        match (self.ledger.fill(block), block.checked_range()) {
            (Fill::Empty, _) | (_, None) => Ok(false),
            (fill, Some(range)) => {
                if fill == Fill::Partial {
                    self.set_huge(&[block], false);
                }
                self.discard_again(range).map(|_| true)
            }
        }
    }

    /// Gives back what is pending in `blocks` (ascending).
    fn give_back(&mut self, blocks: &[BlockId]) {
        let mut runs = std::mem::take(&mut self.runs);
        let mut cut = Vec::new();
        let before = self.ledger.pending().0;
        for &block in blocks {
            if !self.ledger.has_pending(block) {
                continue;
            }
            if self.ledger.fill(block) == Fill::Partial && !self.ledger.is_small(block) {
                cut.push(block);
            }
            self.ledger.take_pending(block, |run| append(&mut runs, run));
        }
        self.set_huge(&cut, false);
        // Less than the runs where a block is full of which parts were given back before.
        let asked = Pages(before - self.ledger.pending().0).bytes();
        self.discard(&runs, asked, |counters| &mut counters.inflation);
        runs.clear();
        self.runs = runs;
    }

    /// Discards `runs`, in which the guest gave up `asked` now.
    fn discard(
        &mut self,
        runs: &[GuestRange],
        asked: Bytes,
        counter: fn(&mut Counters) -> &mut GivenBack,
    ) {
        if runs.is_empty() {
            return;
        }
        let whole = runs.iter().map(|run| run.whole_blocks().count() as u64).sum();
        match self.reclaim.discard(runs) {
            Ok(done) => counter(&mut self.counters).add(Discarded { asked, ..done }, whole),
            Err(error) => {
                let counter = counter(&mut self.counters);
                counter.add(Discarded { asked, ..Discarded::default() }, 0);
                counter.fails += 1;
                if let Some(suppressed) = self.log.admit() {
                    tracing::warn!(suppressed, "cannot give memory back: {error}");
                }
            }
        }
    }

    /// Allows or forbids huge pages in `blocks` (ascending), as far as they are wholly RAM.
    fn set_huge(&mut self, blocks: &[BlockId], allow: bool) {
        let mut runs: Vec<GuestRange> = Vec::new();
        for block in blocks {
            if let Some(range) = block.checked_range()
                && self.ledger.is_ram(range)
            {
                append(&mut runs, range);
            }
        }
        for run in runs {
            match self.reclaim.allow_huge(run, allow) {
                Ok(()) => {
                    run.whole_blocks().for_each(|block| self.ledger.set_small(block, !allow));
                }
                Err(error) => {
                    if let Some(suppressed) = self.log.admit() {
                        tracing::warn!(suppressed, "cannot set the page size of {run}: {error}");
                    }
                }
            }
        }
    }
}

/// Adds `run` at the end of `runs`, merged with the last if it goes on from there.
fn append(runs: &mut Vec<GuestRange>, run: GuestRange) {
    if let Some(last) = runs.last_mut()
        && last.end() == run.start()
        && let Some(merged) = GuestRange::from_bounds(last.start(), run.end())
    {
        *last = merged;
    } else {
        runs.push(run);
    }
}
