// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A compaction pass: read the map, plan, carry the plan out, read the map again.
//!
//! What the guest has a part in comes first, each kind with a plan of its own, since it changes the
//! map for what follows:
//!
//! ```text
//! gather: the guest lends its free memory ─▶ returned ─▶ evacuate: sparse blocks ─▶ returned
//!    ─▶ the host's part: discard, collapse, back
//! ```
//!
//! Blocks that the guest gives up for a pass are returned to it at the end of their stage. By then
//! the host has freed them; they cost it nothing until they are used. The driver takes single pages
//! of its balloon back before blocks, so that blocks replace them.
//!
//! The guest runs all the while; a vCPU waits only for a page that is being moved under it. So each
//! step is looked at once more before it is taken, and left out when the guest has made it
//! worthless. Between steps a pass can be cancelled, and it ends when its time is used up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::map::{BlockMap, Holdings, Totals};
use super::mask::PageMask;
use super::plan::{Action, plan};
use super::policy::{Budget, Costs, Goals};
use crate::backing::{BackingError, Discarded};
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::units::{BLOCK_SIZE, BlockId, Bytes, GuestRange, Pages};

/// After so many huge pages in a row that the host did not have, a pass asks for no more.
const COLLAPSE_REFUSALS: u32 = 3;
/// How long the guest may take to say how much memory it has free.
const FREE_PATIENCE: Duration = Duration::from_secs(1);
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

    /// After `block` was filled: if pages of it have been given up meanwhile, takes them away again
    /// and keeps huge pages from it. Whether there were any.
    fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError>;

    /// Asks the guest to empty `blocks` and waits for its answer, for `patience` at most or until
    /// `cancel` is set: `true` for each that it emptied and gave up, in order. `None` if it did not
    /// answer.
    fn evacuate(
        &self,
        blocks: &[BlockId],
        patience: Duration,
        cancel: &AtomicBool,
    ) -> Option<Vec<bool>>;

    /// Asks the guest how much memory it has free, for the next [`holdings`](Self::holdings).
    fn ask_free(&self, patience: Duration);

    /// Pages that the guest has lent on top of what it was told to give up.
    fn lent(&self) -> Pages;

    /// Asks the guest to lend `blocks` blocks more, and waits for them as long as they keep coming,
    /// for `patience` at most or until `cancel` is set. How many came.
    fn gather(&self, blocks: u32, patience: Duration, cancel: &AtomicBool) -> u32;

    /// Returns what the guest has lent beyond `keep`, and waits until it has it back, for a while.
    fn settle(&self, keep: Pages);
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
    /// Blocks backed whole.
    pub back: Tally,
    /// Blocks of free memory, gathered by the guest.
    pub gather: Tally,
    /// Steps planned, in all stages.
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
        let mut run = Run {
            pass: self,
            map: BlockMap::default(),
            start: Instant::now(),
            bytes: self.budget.bytes,
            planned: 0,
            left_out: 0,
            refusals: 0,
            tallies: BTreeMap::new(),
        };
        let lent = self.guest.lent();
        let mut watch = Watch { cancel, progress };
        let mut before = None;
        let mut end = End::Finished;
        for goals in self.stages() {
            run.read_map(&goals)?;
            before.get_or_insert_with(|| run.map.totals());
            let ended = run.stage(&goals, &mut watch);
            // Whatever came of it, the guest gets back what it lent.
            if goals.of_guest() {
                self.guest.settle(lent);
            }
            end = ended?;
            if end != End::Finished {
                break;
            }
        }
        let before = before.unwrap_or_default();
        let after = match run.planned {
            0 => before,
            _ => BlockMap::read(self.ram, &self.guest.holdings())?.totals(),
        };
        let tally = |kind| run.tallies.get(&kind).copied().unwrap_or_default();
        Ok(Report {
            before,
            after,
            discard: tally(Kind::Discard),
            collapse: tally(Kind::Collapse),
            evacuate: tally(Kind::Evacuate),
            back: tally(Kind::Back),
            gather: tally(Kind::Gather),
            planned: run.planned,
            left_out: run.left_out,
            took: run.start.elapsed(),
            end,
        })
    }

    /// The goals of each stage: what the guest has a part in, then the rest.
    fn stages(&self) -> impl Iterator<Item = Goals> {
        let mut goals = self.goals.clone();
        if !self.ram.may_be_huge() {
            goals.collapse_from = None;
            goals.back = false;
        }
        let host = Goals { gather: false, evacuate_up_to: None, ..goals.clone() };
        let guest = Goals { discard: false, collapse_from: None, back: false, ..goals };
        let gather = Goals { evacuate_up_to: None, ..guest.clone() };
        let evacuate = Goals { gather: false, ..guest };
        [gather, evacuate].into_iter().filter(Goals::of_guest).chain([host])
    }
}

/// Who looks on.
struct Watch<'a> {
    cancel: &'a AtomicBool,
    progress: &'a mut dyn FnMut(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Discard,
    Collapse,
    Evacuate,
    Back,
    Gather,
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
    map: BlockMap,
    start: Instant,
    /// What is left of the budget.
    bytes: Bytes,
    planned: usize,
    left_out: usize,
    refusals: u32,
    tallies: BTreeMap<Kind, Tally>,
}

impl Run<'_> {
    fn read_map(&mut self, goals: &Goals) -> Result<(), GuestRamError> {
        let guest = self.pass.guest;
        if goals.gather {
            guest.ask_free(FREE_PATIENCE);
        }
        self.map = BlockMap::read(self.pass.ram, &guest.holdings())?;
        Ok(())
    }

    fn time_left(&self) -> Option<Duration> {
        self.pass.budget.time.checked_sub(self.start.elapsed())
    }

    /// Plans for `goals` with what is left of the budget, and carries the plan out.
    fn stage(&mut self, goals: &Goals, watch: &mut Watch<'_>) -> Result<End, GuestRamError> {
        let budget = Budget { bytes: self.bytes, time: self.time_left().unwrap_or_default() };
        let plan = plan(&self.map, goals, budget, &self.pass.costs);
        let copies =
            plan.steps.iter().map(|step| step.copies).fold(Bytes(0), Bytes::saturating_add);
        self.bytes = self.bytes.saturating_sub(copies);
        let earlier = self.planned;
        self.planned += plan.steps.len();
        self.left_out += plan.left_out;
        let mut rest = plan.steps.as_slice();
        while let Some(step) = rest.first() {
            (watch.progress)(earlier + plan.steps.len() - rest.len(), self.planned);
            if watch.cancel.load(Ordering::Relaxed) {
                return Ok(End::Cancelled);
            }
            let Some(left) = self.time_left() else { return Ok(End::OutOfTime) };
            let taken = match step.action {
                Action::Discard(id) => self.count(Kind::Discard, |run| run.discard(id))?,
                Action::Collapse(id) => {
                    self.count(Kind::Collapse, |run| run.make_huge(id, GuestRam::collapse))?
                }
                Action::Back(id) => self.count(Kind::Back, |run| run.make_huge(id, back_by_one))?,
                Action::Evacuate(_) => self.evacuate(rest, left, watch.cancel),
                Action::Gather(blocks) => self.gather(blocks, left, watch.cancel),
            };
            rest = &rest[taken..];
        }
        (watch.progress)(self.planned, self.planned);
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

    fn make_huge(
        &mut self,
        id: BlockId,
        how: fn(&GuestRam, GuestRange) -> Result<(), GuestRamError>,
    ) -> Result<Outcome, GuestRamError> {
        let Some(range) = id.checked_range() else { return Ok(Outcome::Moot) };
        if self.refusals >= COLLAPSE_REFUSALS {
            return Ok(Outcome::Refused);
        }
        if self.pass.guest.has_holes(id) {
            return Ok(Outcome::Moot);
        }
        let ram = self.pass.ram;
        ram.allow_huge(range, true)?;
        let result = how(ram, range);
        if self.pass.guest.keep_holes(id)? {
            return Ok(Outcome::Moot);
        }
        self.refusals = match (&result, result.as_ref().err().and_then(refusal)) {
            (Err(_), Some(Refusal::NoHugePage)) => self.refusals + 1,
            _ => 0,
        };
        match result {
            Ok(()) => Ok(Outcome::Done(range.bytes())),
            Err(error) => match refusal(&error) {
                Some(Refusal::NoHugePage | Refusal::Never) => Ok(Outcome::Refused),
                Some(Refusal::Busy) => Ok(Outcome::Busy),
                None => Err(error),
            },
        }
    }

    fn gather(&mut self, blocks: u32, patience: Duration, cancel: &AtomicBool) -> usize {
        let came = self.pass.guest.gather(blocks, patience, cancel).min(blocks);
        let tally = self.tallies.entry(Kind::Gather).or_default();
        tally.done += came as usize;
        tally.busy += (blocks - came) as usize;
        let bytes = Bytes(u64::from(came) * BLOCK_SIZE);
        tally.bytes = tally.bytes.saturating_add(bytes);
        1
    }

    /// Has the guest empty the blocks of the first of `steps`, as many as follow each other.
    fn evacuate(
        &mut self,
        steps: &[super::plan::Step],
        patience: Duration,
        cancel: &AtomicBool,
    ) -> usize {
        let blocks: Vec<BlockId> = steps
            .iter()
            .map_while(|step| match step.action {
                Action::Evacuate(id) => Some(id),
                _ => None,
            })
            .take(EVACUATE_AT_ONCE)
            .collect();
        let answer = self.pass.guest.evacuate(&blocks, patience, cancel);
        for (index, id) in blocks.iter().enumerate() {
            let emptied = answer.as_ref().and_then(|a| a.get(index)).copied().unwrap_or(false);
            let used = self.map.get(*id).map(|b| b.used().bytes()).unwrap_or_default();
            let outcome = if emptied { Outcome::Done(used) } else { Outcome::Busy };
            self.note(Kind::Evacuate, &outcome);
        }
        blocks.len()
    }
}

/// Makes a block huge that may be absent: only its first page is touched, as a host that is short
/// of memory, or of what a cgroup may have, refuses huge pages but kills for want of small ones.
fn back_by_one(ram: &GuestRam, block: GuestRange) -> Result<(), GuestRamError> {
    let first = GuestRange::new(block.start(), Pages(1)).expect("a page of the block");
    ram.populate(first)?;
    match ram.residency_of(block)?.huge {
        Some(huge) if huge == block.bytes() => Ok(()),
        _ => ram.collapse(block),
    }
}

/// Why the kernel does not make a block huge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// None to be had: neither free, nor within the cgroup's limit.
    NoHugePage,
    /// A passing obstacle.
    Busy,
    /// Not of this memory, or not by this kernel.
    Never,
}

/// What the kernel's refusal to make a block huge means; `None` if it is no refusal but a fault
/// (madvise(2), MADV_COLLAPSE).
fn refusal(error: &GuestRamError) -> Option<Refusal> {
    let GuestRamError::Backing(BackingError::Advise { source, .. }) = error else { return None };
    match source.raw_os_error()? {
        libc::ENOMEM | libc::EBUSY | libc::ENOSYS => Some(Refusal::NoHugePage),
        libc::EAGAIN => Some(Refusal::Busy),
        libc::EINVAL => Some(Refusal::Never),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::backing::BackingKind;
    use crate::blocks::page_set::PageSet;
    use crate::layout::MemoryLayout;
    use crate::units::Pfn;

    /// A balloon over real memory, without a guest.
    struct Balloon<'a> {
        ram: &'a GuestRam,
        pages: RefCell<PageSet>,
        /// Called before each discard: what the guest does meanwhile.
        meanwhile: fn(&RefCell<PageSet>),
        /// Blocks that the guest can make free.
        free: RefCell<Vec<BlockId>>,
        lent: Cell<Pages>,
    }

    impl GuestSide for Balloon<'_> {
        fn holdings(&self) -> Holdings {
            let free = self.free.borrow().len() as u64 * BLOCK_SIZE;
            let guest_free = (free > 0).then_some(Bytes(free));
            Holdings { ballooned: self.pages.borrow().clone(), guest_free, ..Holdings::default() }
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

        fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError> {
            let holes = *self.pages.borrow().mask(block);
            self.ram.discard(&holes.ranges_in(block).collect::<Vec<_>>())?;
            Ok(!holes.is_empty())
        }

        fn evacuate(&self, _: &[BlockId], _: Duration, _: &AtomicBool) -> Option<Vec<bool>> {
            None
        }

        fn ask_free(&self, _: Duration) {}

        fn lent(&self) -> Pages {
            self.lent.get()
        }

        /// The guest has the free pages that `free` says, and puts whole blocks of them into the
        /// balloon.
        fn gather(&self, blocks: u32, _: Duration, _: &AtomicBool) -> u32 {
            let mut came = 0;
            for block in self.free.borrow().iter().take(blocks as usize) {
                let range = block.checked_range().unwrap();
                self.ram.discard(&[range]).unwrap();
                self.pages.borrow_mut().insert_range(range);
                came += 1;
            }
            self.lent.set(Pages(u64::from(came) * 512));
            came
        }

        /// Single pages come back before blocks.
        fn settle(&self, keep: Pages) {
            let mut back = self.lent.replace(keep).0 - keep.0;
            let all: Vec<_> = self.pages.borrow().iter().map(|(id, m)| (id, *m)).collect();
            let (whole, cut): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, m)| m.is_full());
            for range in cut.iter().chain(&whole).flat_map(|(id, mask)| mask.ranges_in(*id)) {
                let pages = range.pages().0.min(back);
                if let Some(range) = GuestRange::new(range.start(), Pages(pages)) {
                    self.pages.borrow_mut().remove_range(range);
                    back -= pages;
                }
            }
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
        let (free, lent) = (RefCell::default(), Cell::new(Pages(0)));
        Balloon { ram, pages, meanwhile: |_| {}, free, lent }
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

    /// The balloon's single pages are exchanged for whole blocks, and blocks without holes become
    /// huge again. What the guest has free is not resident afterwards.
    #[test]
    fn single_pages_are_exchanged_for_blocks() {
        let ram = ram();
        // A quarter of each of blocks 0 to 3.
        let quarter = |b: u64| (0..128).map(move |i| range(b * 512 + 4 * i, 1));
        let guest = balloon(&ram, (0..4).flat_map(quarter));
        ram.discard(
            &guest.pages.borrow().iter().flat_map(|(id, m)| m.ranges_in(id)).collect::<Vec<_>>(),
        )
        .unwrap();
        *guest.free.borrow_mut() = vec![BlockId(5), BlockId(7)];
        let (goals, budget) =
            (Goals { evacuate_up_to: None, ..Goals::all(true) }, Budget::UNLIMITED);
        let pass = Pass { ram: &ram, guest: &guest, goals, budget, costs: Costs::default() };
        let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
        // One is kept back for the guest's kernel.
        assert_eq!((report.gather.done, report.end), (1, End::Finished));
        assert_eq!(guest.lent.get(), Pages(0));
        assert_eq!(
            (report.before.ballooned, report.after.ballooned),
            (Bytes(2 << 20), Bytes(2 << 20))
        );
        assert!(guest.pages.borrow().mask(BlockId(5)).is_full());
        assert_eq!(report.after.resident, Bytes((BLOCKS * 512 - 1024) << 12));
    }

    /// A range is backed for contiguous use, absent pages too, and holes stay holes.
    #[test]
    fn a_range_is_backed_before_its_use() {
        let ram = ram();
        let guest = balloon(&ram, [range(2 * 512 + 7, 1)]);
        ram.discard(&[range(512, 1024 + 100)]).unwrap();
        let scope = range(512, 3 * 512);
        let pass = Pass {
            ram: &ram,
            guest: &guest,
            goals: Goals::backing(scope),
            budget: Budget::UNLIMITED,
            costs: Costs::default(),
        };
        let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
        assert_eq!(report.back.done + report.back.refused + report.back.busy, 2, "{report:?}");
        let resident = |block: u64| ram.residency_of(range(block * 512, 512)).unwrap();
        if report.back.done == 2 {
            for block in [1, 3] {
                assert_eq!(resident(block).huge, Some(Bytes(BLOCK_SIZE)));
            }
        }
        assert_eq!(resident(2).resident, Bytes(0), "it has a hole");
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
