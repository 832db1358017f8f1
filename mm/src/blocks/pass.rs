// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A compaction pass: read the map, plan, carry the plan out, read the map again.
//!
//! What the guest has a part in comes first, each kind with a plan of its own, since it changes the
//! map for what follows:
//!
//! ```text
//! gather: the guest lends its free memory ─▶ returned ─▶ evacuate: sparse blocks ─▶ returned
//!    ─▶ once more, with patience for what is busy ─▶ returned ─▶ squeeze: full blocks into gaps, as
//!    often as that helps ─▶ returned ─▶ the host's part: discard, collapse, back
//! ```
//!
//! Blocks that the guest gives up for a pass are returned to it at the end of their stage, or as
//! soon as it has lent what it can spare. By then the host has freed them; they cost it nothing
//! until they are used. The driver takes single pages of its balloon back before blocks, so that
//! blocks replace them.
//!
//! The guest runs all the while; a vCPU waits only for a page that is being moved under it. So each
//! step is looked at once more before it is taken, and left out when the guest has made it
//! worthless. Between steps a pass can be cancelled, and it ends when its time is used up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::debug;

use super::map::{BlockMap, Holdings, Totals};
use super::mask::PageMask;
use super::plan::{Action, plan, spare};
use super::policy::{Budget, Costs, Goals};
use crate::backing::{BackingError, Discarded};
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::units::{BLOCK_SIZE, BlockId, Bytes, GuestRange, Pages};

/// After so many huge pages in a row that the host did not have, a pass asks for no more.
const COLLAPSE_REFUSALS: u32 = 3;
/// How long the guest may take to say how much memory it has free.
const FREE_PATIENCE: Duration = Duration::from_secs(1);
/// After so many requests in a row without an answer, a pass asks the guest for no more.
const UNANSWERED: u32 = 2;
/// How many blocks the guest is asked to empty at once.
const EVACUATE_AT_ONCE: usize = 16;
/// How often the guest is asked to lend what it has free, at most: each time as many single pages of
/// the balloon become blocks.
const GATHERS: u32 = 4;
/// How often full blocks are emptied into what gaps there are left, at most.
const SQUEEZES: u32 = 4;

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

    /// Asks the guest to empty `blocks`, with `sync` to wait for pages that are busy for the moment,
    /// and waits for its answer, for `patience` at most or until `cancel` is set: `true` for each that it emptied and gave up, in order. `None` if it did not
    /// answer.
    fn evacuate(
        &self,
        blocks: &[BlockId],
        sync: bool,
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
            before: None,
            start: Instant::now(),
            bytes: self.budget.bytes,
            planned: 0,
            left_out: 0,
            sync: false,
            unanswered: 0,
            refusals: 0,
            lent: self.guest.lent(),
            emptied: 0,
            spare: 0,
            stuck: BTreeSet::new(),
            tallies: BTreeMap::new(),
        };
        let mut watch = Watch { cancel, progress };
        let mut end = End::Finished;
        for stage in self.stages() {
            end = run.rounds_of(&stage, &mut watch)?;
            if end != End::Finished {
                break;
            }
        }
        let before = run.before.unwrap_or_default();
        let after = match run.planned {
            0 => before,
            _ => BlockMap::read(self.ram, &self.guest.holdings())?.totals(),
        };
        Ok(Report {
            before,
            after,
            discard: run.tally(Kind::Discard),
            collapse: run.tally(Kind::Collapse),
            evacuate: run.tally(Kind::Evacuate),
            back: run.tally(Kind::Back),
            gather: run.tally(Kind::Gather),
            planned: run.planned,
            left_out: run.left_out,
            took: run.start.elapsed(),
            end,
        })
    }

    /// What the guest has a part in, each by itself, then the rest.
    fn stages(&self) -> impl Iterator<Item = Stage> {
        let mut goals = self.goals.clone();
        if !self.ram.may_be_huge() {
            goals.collapse_from = None;
            goals.back = false;
            goals.back_gpu = false;
        }
        let host = Goals { gather: false, squeeze: false, evacuate_up_to: None, ..goals.clone() };
        let guest =
            Goals { discard: false, collapse_from: None, back: false, back_gpu: false, ..goals };
        let gather = Goals { squeeze: false, evacuate_up_to: None, ..guest.clone() };
        let evacuate = Goals { gather: false, squeeze: false, ..guest.clone() };
        let squeeze = Goals { gather: false, evacuate_up_to: None, ..guest };
        let once = |goals| Stage { goals, sync: false, rounds: 1 };
        let helped = [
            Stage { rounds: GATHERS, ..once(gather) },
            once(evacuate.clone()),
            Stage { sync: true, ..once(evacuate) },
            Stage { rounds: SQUEEZES, ..once(squeeze) },
        ];
        helped.into_iter().filter(|stage| stage.goals.of_guest()).chain([once(host)])
    }
}

/// A part of a pass that has a plan of its own.
struct Stage {
    goals: Goals,
    /// Whether the guest is to wait for what is busy.
    sync: bool,
    /// Planned anew and done again so often, as long as the guest does what it is asked to.
    rounds: u32,
}

/// Who looks on.
struct Watch<'a> {
    cancel: &'a AtomicBool,
    progress: &'a mut dyn FnMut(usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Sums of the first map.
    before: Option<Totals>,
    start: Instant,
    /// What is left of the budget.
    bytes: Bytes,
    planned: usize,
    left_out: usize,
    /// Whether the guest waits for what is busy.
    sync: bool,
    /// Requests in a row that the guest did not answer.
    unanswered: u32,
    refusals: u32,
    /// What the guest had lent before the pass.
    lent: Pages,
    /// Blocks that it has emptied and not got back.
    emptied: usize,
    /// How many that may be.
    spare: usize,
    /// Blocks that it could not empty.
    stuck: BTreeSet<BlockId>,
    tallies: BTreeMap<Kind, Tally>,
}

impl Run<'_> {
    fn read_map(&mut self, goals: &Goals) -> Result<(), GuestRamError> {
        let guest = self.pass.guest;
        if goals.gather || goals.squeeze {
            guest.ask_free(FREE_PATIENCE);
        }
        self.map = BlockMap::read(self.pass.ram, &guest.holdings())?;
        self.before.get_or_insert_with(|| self.map.totals());
        Ok(())
    }

    fn tally(&self, kind: Kind) -> Tally {
        self.tallies.get(&kind).copied().unwrap_or_default()
    }

    /// Blocks that the guest has emptied for the pass, one way or another.
    fn moved(&self) -> usize {
        self.tally(Kind::Evacuate).done + self.tally(Kind::Gather).done
    }

    /// For a plan that is not to try again what could not be done.
    fn leave_out_what_is_stuck(&mut self) {
        for id in &self.stuck {
            self.map.leave_out(*id);
        }
    }

    /// The guest gets back what it has lent.
    fn settle(&mut self) {
        self.pass.guest.settle(self.lent);
        self.emptied = 0;
    }

    fn time_left(&self) -> Option<Duration> {
        self.pass.budget.time.checked_sub(self.start.elapsed())
    }

    /// Does `stage`, as often as it is to be done.
    fn rounds_of(&mut self, stage: &Stage, watch: &mut Watch<'_>) -> Result<End, GuestRamError> {
        self.sync = stage.sync;
        for round in 0..stage.rounds {
            self.read_map(&stage.goals)?;
            let (totals, free) = (self.map.totals(), self.map.guest_free());
            debug!(goals = ?stage.goals, stage.sync, round, ?totals, ?free, "stage of a pass");
            if round > 0 {
                self.leave_out_what_is_stuck();
            }
            let (moved, stuck) = (self.moved(), self.tally(Kind::Gather).busy);
            let ended = self.stage(&stage.goals, watch);
            // Whatever came of it, the guest gets back what it lent.
            if stage.goals.of_guest() {
                self.settle();
            }
            // A guest that did not come up with all that it could lend has come to its limit.
            let goes_on = self.moved() > moved && self.tally(Kind::Gather).busy == stuck;
            match ended? {
                End::Finished if goes_on => {}
                end => return Ok(end),
            }
        }
        Ok(End::Finished)
    }

    /// Plans for `goals` with what is left of the budget, and carries the plan out.
    fn stage(&mut self, goals: &Goals, watch: &mut Watch<'_>) -> Result<End, GuestRamError> {
        let budget = Budget { bytes: self.bytes, time: self.time_left().unwrap_or_default() };
        let plan = plan(&self.map, goals, budget, &self.pass.costs);
        let spare = spare(&self.map).unwrap_or_default().0 / BLOCK_SIZE;
        self.spare = usize::try_from(spare).unwrap_or(usize::MAX).max(EVACUATE_AT_ONCE);
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
        if self.emptied + blocks.len() > self.spare {
            self.settle();
        }
        // Each question to a guest that does not answer would cost its patience.
        let answer = match self.unanswered >= UNANSWERED {
            true => None,
            false => self.pass.guest.evacuate(&blocks, self.sync, patience, cancel),
        };
        self.unanswered = if answer.is_none() { self.unanswered + 1 } else { 0 };
        for (index, id) in blocks.iter().enumerate() {
            let emptied = answer.as_ref().and_then(|a| a.get(index)).copied().unwrap_or(false);
            let used = self.map.get(*id).map(|b| b.used().bytes()).unwrap_or_default();
            let outcome = if emptied {
                self.emptied += 1;
                Outcome::Done(used)
            } else {
                self.stuck.insert(*id);
                Outcome::Busy
            };
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
mod tests;
