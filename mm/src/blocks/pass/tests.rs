// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Passes over real memory with a balloon and no guest.

use std::cell::{Cell, RefCell};

use vm_memory::{Bytes as _, GuestAddress};

use std::sync::atomic::Ordering;

use super::*;
use crate::backing::{BackingKind, Discarded};
use crate::blocks::map::Holdings;
use crate::blocks::mask::PageMask;
use crate::blocks::page_set::PageSet;
use crate::blocks::report::StepTally;
use crate::layout::MemoryLayout;
use crate::units::{BLOCK_SIZE, BlockId, Bytes, GuestRange, Pages, Pfn};

/// A balloon over real memory, without a guest.
struct Balloon<'a> {
    ram: &'a GuestRam,
    pages: RefCell<PageSet>,
    /// Called before each discard: what the guest does in between.
    in_between: fn(&RefCell<PageSet>),
    /// Blocks that the guest can free.
    free: RefCell<Vec<BlockId>>,
    lent: Cell<Pages>,
    /// Taken back to be exchanged.
    taken: Cell<Pages>,
    /// How often it was asked to evacuate blocks.
    asked: Cell<u32>,
    /// How often it was asked how much memory it has free, which is once for each map.
    asked_free: Cell<u32>,
    /// Blocks that it evacuates on request; if `None`, it does not reply.
    empties: Option<fn(BlockId) -> bool>,
    /// The most blocks that it had lent at one time.
    most_lent: Cell<Pages>,
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
        (self.in_between)(&self.pages);
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

    /// The contents of the blocks are lost: these tests do not read them.
    fn evacuate(
        &self,
        blocks: &[BlockId],
        _: bool,
        _: Duration,
        _: &AtomicBool,
    ) -> Option<Vec<bool>> {
        self.asked.set(self.asked.get() + 1);
        let empties = self.empties?;
        for block in blocks.iter().filter(|block| empties(**block)) {
            let range = block.checked_range().unwrap();
            let new = 512 - self.pages.borrow().mask(*block).count().0;
            self.ram.discard(&[range]).unwrap();
            self.pages.borrow_mut().insert_range(range);
            self.lent.set(Pages(self.lent.get().0 + new));
        }
        self.most_lent.set(self.most_lent.get().max(self.lent.get()));
        Some(blocks.iter().map(|block| empties(*block)).collect())
    }

    fn ask_free(&self, _: Duration) {
        self.asked_free.set(self.asked_free.get() + 1);
    }

    fn lent(&self) -> Pages {
        self.lent.get()
    }

    fn take_back(&self, pages: Pages, _: Duration, _: &AtomicBool) -> Pages {
        self.remove_single_first(pages);
        self.taken.set(pages);
        pages
    }

    /// The guest has the free pages that `free` says, and puts whole blocks of them into the
    /// balloon.
    fn gather(&self, blocks: u32, _: Duration, _: &AtomicBool, meanwhile: &mut dyn FnMut()) -> u32 {
        meanwhile();
        let mut came = 0;
        let mut free = self.free.borrow_mut();
        let replaced = (self.taken.replace(Pages(0)).0 / 512) as usize;
        let given = free.len().min(replaced + blocks as usize);
        for block in free.drain(..given) {
            let range = block.checked_range().unwrap();
            self.ram.discard(&[range]).unwrap();
            self.pages.borrow_mut().insert_range(range);
            came += 1;
        }
        self.lent.set(Pages((given - replaced) as u64 * 512));
        came
    }

    fn settle(&self, keep: Pages) {
        self.remove_single_first(Pages(self.lent.replace(keep).0 - keep.0));
    }
}

impl Balloon<'_> {
    /// Single pages come back before blocks.
    fn remove_single_first(&self, pages: Pages) {
        let mut back = pages.0;
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
/// How many blocks are evacuated at once.
const AT_ONCE: usize = 16;

fn ram() -> GuestRam {
    ram_of(BLOCKS)
}

fn ram_of(blocks: u64) -> GuestRam {
    let layout = MemoryLayout::new(Bytes(blocks * BLOCK_SIZE), Bytes(0)).unwrap();
    let ram = GuestRam::new(layout, BackingKind::Thp).unwrap();
    for page in 0..blocks * 512 {
        ram.memory().write_obj(page + 1, GuestAddress(page << 12)).unwrap();
    }
    ram
}

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}

fn balloon(ram: &GuestRam, ranges: impl IntoIterator<Item = GuestRange>) -> Balloon<'_> {
    let pages = RefCell::new(ranges.into_iter().collect());
    let (free, lent, taken) = (RefCell::default(), Cell::new(Pages(0)), Cell::new(Pages(0)));
    let (asked, asked_free, most_lent) = (Cell::new(0), Cell::new(0), Cell::new(Pages(0)));
    Balloon {
        ram,
        pages,
        in_between: |_| {},
        free,
        lent,
        taken,
        asked,
        asked_free,
        empties: None,
        most_lent,
    }
}

fn run(ram: &GuestRam, guest: &Balloon<'_>) -> PassReport {
    let pass = Pass::new(ram, guest, Goals::all(false), PassLimits::UNLIMITED);
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
fn discards_what_is_held_for_nothing() {
    let ram = ram();
    // All of block 1; half of block 3, in runs of one.
    let odd = (0..256).map(|i| range(3 * 512 + 2 * i, 1));
    let guest = balloon(&ram, odd.chain([range(512, 512)]));
    let report = run(&ram, &guest);
    assert_eq!(report.end, EndReason::Finished);
    assert_eq!((report.tallies.discard.done, report.tallies.discard.bytes), (2, Bytes(768 << 12)));
    assert_eq!(report.after.wasted, Bytes(0));
    assert_eq!(report.after.resident, Bytes((BLOCKS * 512 - 768) << 12));
    assert_intact(&ram, &guest.pages.borrow());
    // After that nothing is left to do for them.
    assert_eq!(run(&ram, &guest).tallies.discard, StepTally::default());
}

#[test]
fn pages_taken_back_in_the_meantime_are_safe() {
    let ram = ram();
    let mut guest = balloon(&ram, [range(512, 512)]);
    guest.in_between = |pages| {
        pages.borrow_mut().remove_range(range(600, 50));
    };
    let report = run(&ram, &guest);
    assert_eq!(report.tallies.discard.bytes, Bytes((512 - 50) << 12));
    assert_intact(&ram, &guest.pages.borrow());
}

#[test]
fn a_cancelled_pass_does_no_more() {
    let ram = ram();
    let guest = balloon(&ram, (0..BLOCKS).map(|b| range(b * 512, 512)));
    let pass = Pass::new(&ram, &guest, Goals::all(false), PassLimits::UNLIMITED);
    for stop_at in 0..BLOCKS as usize {
        ram.populate(range(0, BLOCKS * 512)).unwrap();
        let cancel = AtomicBool::new(false);
        let mut stop = |done: usize, _| cancel.store(done >= stop_at, Ordering::Relaxed);
        let report = pass.run(&cancel, &mut stop).unwrap();
        assert_eq!((report.tallies.discard.done, report.end), (stop_at, EndReason::Cancelled));
    }
}

/// The balloon's single pages are exchanged for whole blocks; before, a block that pages will move
/// to becomes huge. What the guest has free is not resident afterwards.
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
    let goals = Goals { collapse_from: Some(Pages(512)), ..Goals::all(true) };
    let goals = Goals { evacuate_up_to: None, squeeze: false, ..goals };
    let pass = Pass::new(&ram, &guest, goals, PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    // One block instead of single pages, and one that is lent; the rest is the guest's kernel's.
    assert_eq!((report.tallies.gather.done, report.end), (2, EndReason::Finished));
    assert_eq!(guest.lent.get(), Pages(0));
    assert_eq!((report.before.ballooned, report.after.ballooned), (Bytes(2 << 20), Bytes(2 << 20)));
    assert!(guest.pages.borrow().iter().all(|(_, mask)| mask.is_full()), "no single pages");
    let of = |block: u64| ram.residency_of(range(block * 512, 512)).unwrap();
    assert_eq!((of(5).resident, of(7).resident), (Bytes(0), Bytes(0)));
    if report.tallies.collapse.refused + report.tallies.collapse.busy == 0 {
        assert_eq!(of(3).huge, Some(Bytes(BLOCK_SIZE)), "{report:?}");
    }
}

/// A guest that does not reply is asked twice, not once for each sixteen blocks.
#[test]
fn stops_asking_a_guest_that_does_not_answer() {
    let ram = ram();
    let guest = balloon(&ram, (0..BLOCKS).map(|b| range(b * 512, 200)));
    let goals = Goals { gather: false, squeeze: false, ..Goals::all(true) };
    let pass = Pass::new(&ram, &guest, goals, PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert_eq!(report.tallies.evacuate.done, 0);
    assert_eq!(report.tallies.evacuate.busy, 2 * BLOCKS as usize, "{report:?}");
    assert_eq!(guest.asked.get(), 2);
}

/// A guest that evacuates many blocks gets them back before it runs out of memory.
#[test]
fn no_more_is_lent_than_can_be_spared() {
    const SPARSE: u64 = 3 * AT_ONCE as u64;
    let ram = ram_of(SPARSE);
    let mut guest = balloon(&ram, (0..SPARSE).map(|b| range(b * 512, 100)));
    guest.empties = Some(|_| true);
    let goals = Goals { gather: false, squeeze: false, ..Goals::all(true) };
    let pass = Pass::new(&ram, &guest, goals, PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert!(report.tallies.evacuate.done >= SPARSE as usize, "{report:?}");
    assert_eq!(guest.lent.get(), Pages(0));
    let most = AT_ONCE as u64 * 512;
    assert!(guest.most_lent.get() <= Pages(most), "{} at a time", guest.most_lent.get());
}

/// Full blocks are squeezed into gaps repeatedly, except those that did not move before.
#[test]
fn squeezing_goes_on_while_it_helps() {
    const FULL: u64 = 40;
    let ram = ram_of(2 * FULL);
    // As much is free as is absent, and a gap of twenty blocks more.
    ram.discard(&[range(0, FULL * 512)]).unwrap();
    let mut guest = balloon(&ram, []);
    *guest.free.borrow_mut() = (0..FULL + 20).map(BlockId).collect();
    guest.empties = Some(|block| block.0 % 2 == 0);
    let goals = Goals { gather: false, evacuate_up_to: None, ..Goals::all(true) };
    let pass = Pass::new(&ram, &guest, goals, PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert!(report.tallies.evacuate.done > 10, "one round does half of twenty: {report:?}");
    assert!(report.tallies.evacuate.busy <= FULL as usize / 2, "{report:?}");
}

/// Where the highest blocks cannot move, which hold the kernel's own pages, others do in the next round.
#[test]
fn squeezing_passes_over_stuck_blocks() {
    const FULL: u64 = 40;
    let ram = ram_of(2 * FULL);
    ram.discard(&[range(0, FULL * 512)]).unwrap();
    let mut guest = balloon(&ram, []);
    *guest.free.borrow_mut() = (0..FULL + 20).map(BlockId).collect();
    guest.empties = Some(|block| block.0 < 60);
    let goals = Goals { gather: false, evacuate_up_to: None, ..Goals::all(true) };
    let pass = Pass::new(&ram, &guest, goals, PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert!(report.tallies.evacuate.done > 0, "{report:?}");
    assert_eq!(report.tallies.evacuate.busy, 20, "each is asked for once: {report:?}");
}

/// A range is backed for contiguous use, absent pages too, and holes stay holes.
#[test]
fn a_range_is_backed_before_its_use() {
    let ram = ram();
    let guest = balloon(&ram, [range(2 * 512 + 7, 1)]);
    ram.discard(&[range(512, 1024 + 100)]).unwrap();
    let scope = range(512, 3 * 512);
    let pass = Pass::new(&ram, &guest, Goals::backing(scope), PassLimits::UNLIMITED);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert_eq!(
        report.tallies.back.done + report.tallies.back.refused + report.tallies.back.busy,
        2,
        "{report:?}"
    );
    let resident = |block: u64| ram.residency_of(range(block * 512, 512)).unwrap();
    if report.tallies.back.done == 2 {
        for block in [1, 3] {
            assert_eq!(resident(block).huge, Some(Bytes(BLOCK_SIZE)));
        }
    }
    assert_eq!(resident(2).resident, Bytes(0), "it has a hole");
}

#[test]
fn takes_no_step_without_time() {
    let ram = ram();
    let guest = balloon(&ram, [range(512, 512)]);
    let limits = PassLimits { bytes: Bytes(u64::MAX), time: Duration::ZERO };
    let pass = Pass::new(&ram, &guest, Goals::all(false), limits);
    let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
    assert_eq!((report.planned, report.left_out), (0, 1));
    assert_eq!(report.before, report.after);
}

#[test]
fn the_map_is_read_again_only_after_a_change() {
    let maps = |empties: fn(BlockId) -> bool, age| {
        let ram = ram();
        // Block 2 is sparse.
        let mut guest = balloon(&ram, [range(2 * 512, 400)]);
        ram.discard(&[range(2 * 512, 400)]).unwrap();
        guest.empties = Some(empties);
        let mut pass = Pass::new(&ram, &guest, Goals::all(true), PassLimits::UNLIMITED);
        pass.policy.map_age = age;
        pass.run(&AtomicBool::new(false), &mut |_, _| {}).unwrap();
        guest.asked_free.get()
    };
    // Gathering, evacuating twice, squeezing; the host's own stage asks nothing.
    assert_eq!(maps(|_| false, Duration::MAX), 1);
    assert_eq!(maps(|_| true, Duration::MAX), 2);
    assert_eq!(maps(|_| false, Duration::ZERO), 4);
}
