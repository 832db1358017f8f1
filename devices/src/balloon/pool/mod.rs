// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When ballooned pages are discarded on the host; `giving_back.rs` has the mechanism.
//!
//! A huge page of the host is free only when the last of its 512 pages is. Discarding single pages
//! as they arrive would split huge pages of blocks that are about to be given up entirely, at a
//! hundred times the cost. So a page in the balloon is *pending* first:
//!
//! ```text
//! inflate ─▶ pending ─┬─ its block is full ───────────────▶ given back as one, at once
//!                     ├─ nothing new in its block for a while, or the balloon has reached its
//!                     │  target ─▶ given back singly; huge pages are forbidden in the block,
//!                     │  or the next touch would fill the holes again
//!                     └─ deflate ─▶ nothing to do: the host never lost the page
//! ```
//!
//! Waiting is safe only with a driver that notifies the device before it uses a page again
//! (MUST_TELL_HOST). With another driver, a page might be in use when it is discarded, and its
//! contents would be lost: everything is discarded before the inflate request is completed.
//!
//! Memory that the host might not be able to allocate again (hugetlb) is discarded only with such a
//! driver, and allocated again before the driver may use it. A reset ends only when all of it is
//! allocated, since without a driver the guest owns all its memory. Until then the vCPU that resets
//! the device waits: otherwise the guest would crash at its first access.

mod giving_back;

use std::any::Any;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mm::blocks::page_set::PageSet;
use mm::budget::Budget;
use mm::units::{BlockId, GuestRange, Pages};

use super::event_journal::EventJournal;
use super::ledger::{BlockFill, Ledger};
use super::memory_reclaim::MemoryReclaim;
use super::page_runs::take_pages;
use super::page_sizes::PageSizes;
use crate::virtio::Deadline;

pub(super) use giving_back::take_step;

/// A block waits for more of its pages for at least this long, and at most twice as long.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// Most blocks whose memory is freed between two looks at the deadline. Where they consist of small
/// pages, freeing one takes a virtual host up to 0.3 ms.
const BATCH: usize = 4;
/// Most runs of pages between two looks at the deadline. Each is a system call, which takes up to
/// 20 us where it interrupts vCPUs of a nested guest.
const RUNS: usize = 32;

/// The balloon's pages, and the memory behind them.
pub(super) struct Pool {
    pub(super) ledger: Ledger,
    /// Pages that the guest reported free and has not put into the balloon since. It may be using
    /// them again, which the page table shows.
    reported: PageSet,
    reclaim: Box<dyn MemoryReclaim>,
    page_sizes: PageSizes,
    /// Whether pages may wait: the driver notifies the device before it uses one again.
    patient: bool,
    /// Blocks with pending pages that something was added to since the last tick.
    fresh: BTreeSet<BlockId>,
    /// The same, of the tick before.
    aging: BTreeSet<BlockId>,
    /// Blocks with pending pages that are due.
    due: BTreeSet<BlockId>,
    /// Blocks touched by the buffer being handled.
    touched: BTreeSet<BlockId>,
    /// Blocks whose huge-page setting must be updated after a reset.
    to_resize: VecDeque<BlockId>,
    /// RAM that the guest may use again after a reset and that the host must allocate first.
    to_restore: VecDeque<GuestRange>,
    /// State of the last driver, to be freed without the lock.
    remains: Option<Box<dyn Any + Send>>,
    runs: Vec<GuestRange>,
}

impl Pool {
    /// An empty balloon over the memory of `reclaim`.
    pub(super) fn new(reclaim: Box<dyn MemoryReclaim>, mappings: &Arc<Budget>) -> Self {
        Self {
            ledger: Ledger::new(&reclaim.ram()),
            reported: PageSet::new(),
            reclaim,
            page_sizes: PageSizes::new(mappings),
            patient: false,
            fresh: BTreeSet::new(),
            aging: BTreeSet::new(),
            due: BTreeSet::new(),
            touched: BTreeSet::new(),
            to_resize: VecDeque::new(),
            to_restore: VecDeque::new(),
            remains: None,
            runs: Vec::new(),
        }
    }

    /// Whether pages may wait before they are discarded; see the head of this file.
    pub(super) fn set_patient(&mut self, patient: bool) {
        self.patient = patient;
    }

    /// The smallest unit that can be discarded on the host.
    pub(super) fn unit(&self) -> Pages {
        self.reclaim.unit()
    }

    /// Puts the RAM of `range` into the balloon; returns the pages that were new to it.
    pub(super) fn inflate(&mut self, range: GuestRange, journal: &mut EventJournal) -> Pages {
        let mut new = 0;
        let parts: Vec<GuestRange> = self.ledger.clip(range).collect();
        for part in parts {
            new += self.enter(part);
            self.touched.extend(part.touched_blocks());
        }
        journal.counters.inflated_pages += new;
        journal.counters.refused_pages += range.pages().0 - new;
        Pages(new)
    }

    /// Notes that `ram` is in the balloon; returns how many of its pages were new to it.
    fn enter(&mut self, ram: GuestRange) -> u64 {
        if self.reported.pages() > Pages(0) {
            self.reported.remove_range(ram);
        }
        self.ledger.inflate(ram).0
    }

    /// Takes the RAM of `range` out of the balloon; returns the pages that were in it. They are
    /// never discarded from now on.
    pub(super) fn deflate(&mut self, range: GuestRange, journal: &mut EventJournal) -> Pages {
        let pending = self.ledger.pending().0;
        let mut gone = 0;
        let parts: Vec<GuestRange> = self.ledger.clip(range).collect();
        for part in parts {
            gone += self.ledger.deflate(part).0;
            self.touched.extend(part.touched_blocks());
        }
        journal.counters.deflated_pages += gone;
        journal.counters.spared_pages += pending - self.ledger.pending().0;
        journal.counters.refused_pages += range.pages().0 - gone;
        Pages(gone)
    }

    /// Puts `blocks`, which have no page in the balloon, into it. They are pending.
    pub(super) fn inflate_blocks(
        &mut self,
        blocks: &[(BlockId, GuestRange)],
        journal: &mut EventJournal,
    ) {
        for (_, range) in blocks {
            journal.counters.inflated_pages += self.enter(*range);
        }
        journal.counters.inflated_blocks += blocks.len() as u64;
    }

    /// Takes `blocks`, all of whose pages are in the balloon, out of it.
    pub(super) fn deflate_blocks(
        &mut self,
        blocks: &[(BlockId, GuestRange)],
        journal: &mut EventJournal,
    ) {
        for (_, range) in blocks {
            journal.counters.deflated_pages += self.ledger.deflate(*range).0;
        }
        journal.counters.deflated_blocks += blocks.len() as u64;
    }

    /// The blocks of the last inflate request whose pages need not wait: they are discarded before
    /// the request is completed. The others wait for more of their pages.
    pub(super) fn take_filled(&mut self) -> Vec<BlockId> {
        let touched = std::mem::take(&mut self.touched);
        let mut now = Vec::new();
        for block in touched {
            let full = self.ledger.fill(block) == BlockFill::Full;
            if full || !self.patient {
                self.withdraw(block);
                now.push(block);
            } else if self.ledger.has_pending(block) {
                self.withdraw(block);
                self.fresh.insert(block);
            }
        }
        now
    }

    /// The blocks of the last deflate request: their huge-page setting is updated before the
    /// request is completed.
    pub(super) fn take_touched(&mut self) -> Vec<BlockId> {
        let touched = std::mem::take(&mut self.touched);
        for block in &touched {
            if !self.ledger.has_pending(*block) {
                self.withdraw(*block);
            }
        }
        touched.into_iter().collect()
    }

    /// Whether pages wait to be discarded.
    pub(super) fn waiting(&self) -> bool {
        !self.fresh.is_empty() || !self.aging.is_empty() || self.due()
    }

    /// Whether some of them are due now, or other work is pending.
    pub(super) fn due(&self) -> bool {
        !self.due.is_empty() || !self.to_resize.is_empty()
    }

    /// Pages that the guest may use again once its reset is over, for which the host has yet to
    /// allocate memory.
    pub(super) fn to_restore(&self) -> Pages {
        Pages(self.to_restore.iter().map(|range| range.pages().0).sum())
    }

    /// Allocates such pages until none are left, `deadline` passes or the host has no memory.
    pub(super) fn restore_forgotten(
        &mut self,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) {
        let unit = self.unit();
        while !deadline.passed() && !self.to_restore.is_empty() {
            let ranges = take_pages(&mut self.to_restore, unit, 1);
            if !self.restore(&ranges, journal, deadline) {
                ranges.into_iter().rev().for_each(|range| self.to_restore.push_front(range));
                return;
            }
        }
    }

    /// [`PATIENCE`] has passed: blocks that have not grown since the last tick are due.
    pub(super) fn tick(&mut self) {
        self.due.append(&mut self.aging);
        std::mem::swap(&mut self.aging, &mut self.fresh);
    }

    /// The guest has reached its goal: all pending pages are due.
    pub(super) fn hurry(&mut self) {
        self.due.append(&mut self.aging);
        self.due.append(&mut self.fresh);
    }

    /// Discards due pages until `deadline`; the rest stays due.
    pub(super) fn work(&mut self, journal: &mut EventJournal, deadline: &mut Deadline) {
        while !self.due.is_empty() && !deadline.passed() {
            let batch = std::iter::from_fn(|| self.due.pop_first()).take(BATCH);
            let mut batch: VecDeque<BlockId> = batch.collect();
            self.discard_some(&mut batch, journal, deadline);
            self.due.extend(batch);
        }
        let mut blocks = std::mem::take(&mut self.to_resize);
        while !blocks.is_empty() && !deadline.passed() {
            self.resize_some(&mut blocks, journal, deadline);
        }
        self.to_resize = blocks;
    }

    /// The driver was reset: the guest owns all its pages again, and none of them may be discarded
    /// from now on. `leaving` were being taken out of the balloon.
    pub(super) fn forget(&mut self, leaving: Vec<GuestRange>) {
        if !self.reclaim.refills() {
            self.to_restore.extend(leaving);
            // By blocks: resident pages are kept, and the list is bounded by RAM size.
            self.to_restore.extend(self.ledger.touched_runs());
        }
        let lists = [&mut self.fresh, &mut self.aging, &mut self.due, &mut self.touched];
        let lists = lists.map(std::mem::take);
        let reported = std::mem::replace(&mut self.reported, PageSet::new());
        self.remains = Some(Box::new((self.ledger.clear(), reported, lists)));
        let small = self.page_sizes.small_runs();
        self.to_resize = small.iter().flat_map(GuestRange::whole_blocks).collect();
    }

    /// State of the last driver, if it has not been taken.
    pub(super) fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.remains.take()
    }

    /// The parts of `range` that are RAM.
    pub(super) fn clip(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + '_ {
        self.ledger.clip(range)
    }

    /// Remembers `ranges`, all RAM, as reported free.
    pub(super) fn note_reported(&mut self, ranges: &[GuestRange]) {
        for range in ranges {
            self.reported.insert_range(*range);
        }
    }

    /// Pages that the guest reported free and has not put into the balloon since.
    pub(super) fn reported(&self) -> &PageSet {
        &self.reported
    }

    /// Recounts; every pending page must be scheduled for discard in this pool or in one of
    /// `buffers`.
    pub(super) fn validate(&self, buffers: &BTreeSet<BlockId>) -> Result<(), String> {
        self.ledger.validate()?;
        let listed = |block: &BlockId| {
            self.fresh.contains(block)
                || self.aging.contains(block)
                || self.due.contains(block)
                || buffers.contains(block)
        };
        let mut blocks = self.ledger.pending_blocks();
        if let Some(lost) = blocks.find(|block| !listed(block)) {
            return Err(format!("{lost} has pending pages that nothing will give back"));
        }
        if !self.to_resize.is_empty() {
            return Ok(());
        }
        let small = self.page_sizes.small_runs();
        let mut small = small.iter().flat_map(GuestRange::whole_blocks);
        match small.find(|block| self.ledger.fill(*block) == BlockFill::Empty) {
            Some(block) => Err(format!("{block} is empty, and huge pages are forbidden in it")),
            None => Ok(()),
        }
    }

    fn withdraw(&mut self, block: BlockId) {
        self.fresh.remove(&block);
        self.aging.remove(&block);
        self.due.remove(&block);
    }
}
