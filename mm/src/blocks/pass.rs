// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A compaction pass: read the map, plan, carry the plan out, read the map again.
//!
//! The guest runs all the while; a vCPU waits only for a page that is being moved under it. So each
//! step is looked at once more before it is taken, and left out when the guest has made it
//! worthless. Between steps a pass can be cancelled, and it ends when its time is used up.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::map::{BlockMap, Holdings, Totals};
use super::mask::PageMask;
use super::plan::{Action, Plan, plan};
use super::policy::{Budget, Costs, Goals};
use crate::backing::{BackingError, Discarded};
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::units::{BlockId, Bytes};

/// After so many huge pages in a row that the host did not have, a pass asks for no more.
const COLLAPSE_REFUSALS: u32 = 3;
/// How many blocks the guest is asked to empty at once.
const EVACUATE_AT_ONCE: usize = 16;

/// What a pass needs of the devices: who holds what, and the two actions that the guest has a part
/// in.
pub trait GuestSide {
    /// Who holds which pages now.
    fn holdings(&self) -> Holdings;

    /// Gives back those of `pages` of `block` that are in the balloon at this very moment; the
    /// balloon stands still meanwhile, so that no page which the guest took back is lost.
    fn discard_ballooned(
        &self,
        block: BlockId,
        pages: &PageMask,
    ) -> Result<Discarded, GuestRamError>;

    /// Whether pages of `block` were given up, so that nothing may fill it again.
    fn has_holes(&self, block: BlockId) -> bool;

    /// Asks the guest to empty `blocks` and waits for its answer, for `patience` at most: `true`
    /// for each that it emptied and gave up, in order. `None` if it did not answer.
    fn evacuate(&self, blocks: &[BlockId], patience: Duration) -> Option<Vec<bool>>;
}

/// How the steps of one kind went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Carried out.
    pub done: usize,
    /// Left out: the guest had made them worthless.
    pub moot: usize,
    /// Tried in vain: pages were busy.
    pub busy: usize,
    /// Refused by the host: it had no huge page.
    pub refused: usize,
    /// Bytes that the host gained or that became huge.
    pub bytes: Bytes,
}

/// Why a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All that was planned was tried.
    Finished,
    /// The time was used up.
    OutOfTime,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The guest's memory before.
    pub before: Totals,
    /// The guest's memory after.
    pub after: Totals,
    /// Discards.
    pub discard: Tally,
    /// Collapses.
    pub collapse: Tally,
    /// Evacuations.
    pub evacuate: Tally,
    /// Steps planned, and steps that the budget had no room for.
    pub planned: usize,
    /// Steps that were worth doing, had there been budget.
    pub left_out: usize,
    /// How long it took.
    pub took: Duration,
    /// Why it ended.
    pub end: End,
}

/// A pass over one guest's memory.
pub struct Pass<'a> {
    /// The memory.
    pub ram: &'a GuestRam,
    /// The devices.
    pub guest: &'a dyn GuestSide,
    /// What it is for.
    pub goals: Goals,
    /// What it may spend.
    pub budget: Budget,
    /// What things cost.
    pub costs: Costs,
}

impl Pass<'_> {
    /// Runs the pass in this thread. `cancel` may be set from another; `progress` is told of the
    /// steps done and planned.
    ///
    /// Fails if the map cannot be read or the kernel refuses what it should not; what was done
    /// until then stays done.
    pub fn run(
        &self,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Report, GuestRamError> {
        let start = Instant::now();
        let map = BlockMap::read(self.ram, &self.guest.holdings())?;
        let plan = plan(&map, &self.goals, self.budget, &self.costs);
        let mut run = Run { pass: self, map: &map, refusals: 0, tallies: BTreeMap::new() };
        let end = run.carry_out(&plan, start, cancel, progress)?;
        let after = match plan.steps.is_empty() {
            true => map.totals(),
            false => BlockMap::read(self.ram, &self.guest.holdings())?.totals(),
        };
        let tally = |kind| run.tallies.get(&kind).copied().unwrap_or_default();
        Ok(Report {
            before: map.totals(),
            after,
            discard: tally(Kind::Discard),
            collapse: tally(Kind::Collapse),
            evacuate: tally(Kind::Evacuate),
            planned: plan.steps.len(),
            left_out: plan.left_out,
            took: start.elapsed(),
            end,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Discard,
    Collapse,
    Evacuate,
}

/// How one step went.
enum Outcome {
    Done(Bytes),
    Moot,
    Busy,
    Refused,
}

/// A pass under way.
struct Run<'a> {
    pass: &'a Pass<'a>,
    map: &'a BlockMap,
    refusals: u32,
    tallies: BTreeMap<Kind, Tally>,
}

impl Run<'_> {
    fn carry_out(
        &mut self,
        plan: &Plan,
        start: Instant,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<End, GuestRamError> {
        let mut rest = plan.steps.as_slice();
        while let Some(step) = rest.first() {
            progress(plan.steps.len() - rest.len(), plan.steps.len());
            if cancel.load(Ordering::Relaxed) {
                return Ok(End::Cancelled);
            }
            let Some(left) = self.pass.budget.time.checked_sub(start.elapsed()) else {
                return Ok(End::OutOfTime);
            };
            let taken = match step.action {
                Action::Discard(id) => self.count(Kind::Discard, |run| run.discard(id))?,
                Action::Collapse(id) => self.count(Kind::Collapse, |run| run.collapse(id))?,
                Action::Evacuate(_) => self.evacuate(rest, left),
            };
            rest = &rest[taken..];
        }
        progress(plan.steps.len(), plan.steps.len());
        Ok(End::Finished)
    }

    /// Takes one step and counts how it went; returns the number of steps taken.
    fn count(
        &mut self,
        kind: Kind,
        step: impl FnOnce(&mut Self) -> Result<Outcome, GuestRamError>,
    ) -> Result<usize, GuestRamError> {
        let outcome = step(self)?;
        self.note(kind, &outcome);
        Ok(1)
    }

    fn note(&mut self, kind: Kind, outcome: &Outcome) {
        let tally = self.tallies.entry(kind).or_default();
        match outcome {
            Outcome::Done(bytes) => {
                tally.done += 1;
                tally.bytes = tally.bytes.saturating_add(*bytes);
            }
            Outcome::Moot => tally.moot += 1,
            Outcome::Busy => tally.busy += 1,
            Outcome::Refused => tally.refused += 1,
        }
    }

    fn discard(&mut self, id: BlockId) -> Result<Outcome, GuestRamError> {
        let done = self.pass.guest.discard_ballooned(id, self.map.wasted(id))?;
        Ok(match done {
            Discarded { asked: Bytes(0), .. } => Outcome::Moot,
            Discarded { freed: Bytes(0), .. } => Outcome::Busy,
            Discarded { freed, .. } => Outcome::Done(freed),
        })
    }

    fn collapse(&mut self, id: BlockId) -> Result<Outcome, GuestRamError> {
        let Some(range) = id.checked_range() else { return Ok(Outcome::Moot) };
        if self.refusals >= COLLAPSE_REFUSALS {
            return Ok(Outcome::Refused);
        }
        if self.pass.guest.has_holes(id) {
            return Ok(Outcome::Moot);
        }
        let ram = self.pass.ram;
        ram.allow_huge(range, true)?;
        let result = ram.collapse(range);
        // Pages given up while the block was being filled: take their place back.
        if self.pass.guest.has_holes(id) {
            self.pass.guest.discard_ballooned(id, &PageMask::FULL)?;
            return Ok(Outcome::Moot);
        }
        let outcome = match result {
            Ok(()) => Outcome::Done(range.bytes()),
            Err(error) => match refusal(&error) {
                Some(io::ErrorKind::OutOfMemory) => Outcome::Refused,
                Some(_) => Outcome::Busy,
                None => return Err(error),
            },
        };
        self.refusals = if matches!(outcome, Outcome::Refused) { self.refusals + 1 } else { 0 };
        Ok(outcome)
    }

    /// Has the guest empty the blocks of the first of `steps`, as many as follow each other.
    fn evacuate(&mut self, steps: &[super::plan::Step], patience: Duration) -> usize {
        let blocks: Vec<BlockId> = steps
            .iter()
            .map_while(|step| match step.action {
                Action::Evacuate(id) => Some(id),
                _ => None,
            })
            .take(EVACUATE_AT_ONCE)
            .collect();
        let answer = self.pass.guest.evacuate(&blocks, patience);
        for (index, id) in blocks.iter().enumerate() {
            let emptied = answer.as_ref().and_then(|a| a.get(index)).copied().unwrap_or(false);
            let used = self.map.get(*id).map(|b| b.used().bytes()).unwrap_or_default();
            let outcome = if emptied { Outcome::Done(used) } else { Outcome::Busy };
            self.note(Kind::Evacuate, &outcome);
        }
        blocks.len()
    }
}

/// What the kernel's refusal to make a block huge means for the pass; `None` if it is no refusal
/// but a fault (madvise(2), MADV_COLLAPSE).
fn refusal(error: &GuestRamError) -> Option<io::ErrorKind> {
    let GuestRamError::Backing(BackingError::Advise { source, .. }) = error else { return None };
    match source.raw_os_error()? {
        libc::ENOMEM | libc::EBUSY | libc::ENOSYS => Some(io::ErrorKind::OutOfMemory),
        libc::EAGAIN | libc::EINVAL => Some(io::ErrorKind::ResourceBusy),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::backing::BackingKind;
    use crate::blocks::page_set::PageSet;
    use crate::layout::MemoryLayout;
    use crate::units::{BLOCK_SIZE, GuestRange, Pages, Pfn};

    /// A balloon over real memory, without a guest.
    struct Balloon<'a> {
        ram: &'a GuestRam,
        pages: RefCell<PageSet>,
        /// Called before each discard: what the guest does meanwhile.
        meanwhile: fn(&RefCell<PageSet>),
    }

    impl GuestSide for Balloon<'_> {
        fn holdings(&self) -> Holdings {
            Holdings { ballooned: self.pages.borrow().clone(), ..Holdings::default() }
        }

        fn discard_ballooned(
            &self,
            block: BlockId,
            pages: &PageMask,
        ) -> Result<Discarded, GuestRamError> {
            (self.meanwhile)(&self.pages);
            let still = self.pages.borrow().mask(block).intersection(pages);
            self.ram.discard(&still.ranges_in(block).collect::<Vec<_>>())
        }

        fn has_holes(&self, block: BlockId) -> bool {
            !self.pages.borrow().mask(block).is_empty()
        }

        fn evacuate(&self, _: &[BlockId], _: Duration) -> Option<Vec<bool>> {
            None
        }
    }

    const BLOCKS: u64 = 8;

    fn ram() -> GuestRam {
        let layout = MemoryLayout::new(Bytes(BLOCKS * BLOCK_SIZE), Bytes(0)).unwrap();
        let ram = GuestRam::new(layout, BackingKind::Thp).unwrap();
        for page in 0..BLOCKS * 512 {
            ram.memory().write_obj(page + 1, GuestAddress(page << 12)).unwrap();
        }
        ram
    }

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(Pfn(start), Pages(pages)).unwrap()
    }

    fn balloon(ram: &GuestRam, ranges: impl IntoIterator<Item = GuestRange>) -> Balloon<'_> {
        let pages = RefCell::new(ranges.into_iter().collect());
        Balloon { ram, pages, meanwhile: |_| {} }
    }

    fn run(ram: &GuestRam, guest: &Balloon<'_>) -> Report {
        let (goals, budget) = (Goals::all(false), Budget::UNLIMITED);
        let pass = Pass { ram, guest, goals, budget, costs: Costs::default() };
        pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap()
    }

    /// Every page that is not ballooned still holds its number.
    fn assert_intact(ram: &GuestRam, ballooned: &PageSet) {
        for page in 0..BLOCKS * 512 {
            let given_up = ballooned.mask(Pfn(page).block()).contains(Pfn(page).index_in_block());
            let value: u64 = ram.memory().read_obj(GuestAddress(page << 12)).unwrap();
            assert!(given_up || value == page + 1, "page {page} reads {value}");
        }
    }

    #[test]
    fn what_is_held_for_nothing_is_given_back() {
        let ram = ram();
        // All of block 1; half of block 3, in runs of one.
        let odd = (0..256).map(|i| range(3 * 512 + 2 * i, 1));
        let guest = balloon(&ram, odd.chain([range(512, 512)]));
        let report = run(&ram, &guest);
        assert_eq!(report.end, End::Finished);
        assert_eq!((report.discard.done, report.discard.bytes), (2, Bytes(768 << 12)));
        assert_eq!(report.after.wasted, Bytes(0));
        assert_eq!(report.after.resident, Bytes((BLOCKS * 512 - 768) << 12));
        assert_intact(&ram, &guest.pages.borrow());
        // And then there is nothing more to do about them.
        assert_eq!(run(&ram, &guest).discard, Tally::default());
    }

    #[test]
    fn pages_taken_back_in_the_meantime_are_safe() {
        let ram = ram();
        let mut guest = balloon(&ram, [range(512, 512)]);
        guest.meanwhile = |pages| {
            pages.borrow_mut().remove_range(range(600, 50));
        };
        let report = run(&ram, &guest);
        assert_eq!(report.discard.bytes, Bytes((512 - 50) << 12));
        assert_intact(&ram, &guest.pages.borrow());
    }

    #[test]
    fn a_cancelled_pass_does_no_more() {
        let ram = ram();
        let guest = balloon(&ram, (0..BLOCKS).map(|b| range(b * 512, 512)));
        let pass = Pass {
            ram: &ram,
            guest: &guest,
            goals: Goals::all(false),
            budget: Budget::UNLIMITED,
            costs: Costs::default(),
        };
        for stop_at in 0..BLOCKS as usize {
            ram.populate(range(0, BLOCKS * 512)).unwrap();
            let cancel = AtomicBool::new(false);
            let mut stop = |done: usize, _| cancel.store(done >= stop_at, Ordering::Relaxed);
            let report = pass.run(&cancel, &mut stop).unwrap();
            assert_eq!((report.discard.done, report.end), (stop_at, End::Cancelled));
        }
    }

    #[test]
    fn no_time_no_steps() {
        let ram = ram();
        let guest = balloon(&ram, [range(512, 512)]);
        let budget = Budget { bytes: Bytes(u64::MAX), time: Duration::ZERO };
        let goals = Goals::all(false);
        let pass = Pass { ram: &ram, guest: &guest, goals, budget, costs: Costs::default() };
        let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
        assert_eq!((report.planned, report.left_out), (0, 1));
        assert_eq!(report.before, report.after);
    }
}
