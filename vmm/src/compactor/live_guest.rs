// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass needs from the devices of a running machine.
//!
//! Nothing here polls: the balloon announces its changes ([`Changes`]), and each wait for the
//! guest waits for those. No device's lock is held while waiting, nor while a page table is walked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use devices::balloon::{Balloon, BlockResult, Changes, EvacuationReport};
use devices::gpu::{Gpu, WantsBlocks, backing_ranges};
use devices::virtio::{DeviceLock, Locked};
use mm::backing::Discarded;
use mm::blocks::guest_side::GuestSide;
use mm::blocks::map::{BlockMap, Holdings};
use mm::blocks::mask::PageMask;
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::{BlockId, Bytes, GuestRange, PAGES_PER_BLOCK, Pages, SaturatingInto};

/// Timeout for an evacuation: a base time, plus a time per block.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_PER_BLOCK: Duration = Duration::from_millis(200);
/// Extra time for the balloon to report a timeout.
const GRACE: Duration = Duration::from_secs(1);
/// Maximum age of the guest's reported free memory.
const FRESH: Duration = Duration::from_secs(5);
/// Time without a change of the balloon after which the guest counts as stuck. A guest that can make no
/// more blocks says so, by single pages; one on a busy host may take seconds for a few blocks.
const STANDSTILL: Duration = Duration::from_secs(5);
/// This many single pages may be in the balloon temporarily, as halves of migrations. A driver
/// that can make no more blocks sends 256 or more at a time.
const STRAY_PAGES: u64 = 64;
/// Blocks whose record is copied under one lock of the balloon.
const BLOCKS_AT_ONCE: usize = 2048;

/// Pause between two steps, so that waiting threads get the balloon's lock: the mutex is not fair.
const GAP: Duration = Duration::from_micros(50);

/// A balloon as the event loop and the compactor share it.
pub type SharedBalloon = Arc<DeviceLock<Balloon>>;

/// A machine's memory and those of its devices that hold some.
#[derive(Clone)]
pub struct LiveGuest {
    ram: Arc<GuestRam>,
    balloon: Option<SharedBalloon>,
    pub(super) changes: Arc<Changes>,
    gpu: Option<Arc<DeviceLock<Gpu>>>,
}

/// The balloon at one moment of a wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct BalloonSize {
    pub(super) pages: Pages,
    /// Total number of blocks put into it.
    blocks: u64,
    /// Pages in it that are not part of a block.
    single: u64,
}

impl BalloonSize {
    /// Whether the guest has lent all requested blocks or can make no more: then it puts single
    /// pages into the balloon. `before` is the size before it was asked.
    fn has_lent(&self, before: &Self, goal: Pages) -> bool {
        self.pages >= goal || self.single > before.single + STRAY_PAGES
    }
}

impl LiveGuest {
    /// Creates it from memory and, if present, the balloon and the display device.
    pub fn new(
        ram: Arc<GuestRam>,
        balloon: Option<SharedBalloon>,
        gpu: Option<Arc<DeviceLock<Gpu>>>,
    ) -> Self {
        let changes = balloon.as_ref().map(|balloon| Arc::clone(balloon.lock().changes()));
        Self { ram, balloon, changes: changes.unwrap_or_default(), gpu }
    }

    /// The memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The current block map.
    ///
    /// # Errors
    ///
    /// The page table cannot be read.
    pub fn map(&self) -> Result<BlockMap, GuestRamError> {
        BlockMap::read(&self.ram, &self.holdings())
    }

    /// Pages in the balloon.
    pub fn ballooned(&self) -> Pages {
        self.balloon().map(|balloon| balloon.ballooned()).unwrap_or_default()
    }

    /// Whether more of its memory is parked than is resident.
    pub(super) fn is_mostly_absent(&self) -> bool {
        let absent = self.ram.absent();
        absent > Bytes(0) && self.ram.residency().is_ok_and(|found| found.resident < absent)
    }

    /// Whether the guest can be asked to evacuate blocks.
    pub fn can_evacuate(&self) -> bool {
        self.balloon().is_some_and(|balloon| balloon.can_evacuate())
    }

    /// Wakes all waits for the guest; called after setting the flag that cancels a pass.
    pub(super) fn wake(&self) {
        self.changes.announce();
    }

    /// Calls `tell` when the display device would benefit from huge pages; `None` disables it.
    pub(super) fn on_large_gpu_buffer(&self, tell: Option<WantsBlocks>) {
        if let Some(gpu) = &self.gpu {
            gpu.lock().on_large_backing(tell);
        }
    }

    /// Calls `act` with the balloon, if there is one.
    pub(crate) fn with_balloon<R>(&self, act: impl FnOnce(&mut Balloon) -> R) -> Option<R> {
        self.balloon().map(|mut balloon| act(&mut balloon))
    }

    /// Discards those of `pages` that are in the balloon, in steps.
    fn discard_run(&self, pages: GuestRange) -> Result<Discarded, GuestRamError> {
        let mut total = Discarded::default();
        let mut left = Some(pages);
        while let Some(pages) = left {
            let Some(step) = self.with_balloon(|balloon| balloon.discard_ballooned(pages)) else {
                break;
            };
            let (done, rest) = step?;
            total.add(done);
            left = rest;
            if left.is_some() {
                thread::sleep(GAP);
            }
        }
        Ok(total)
    }

    pub(super) fn balloon(&self) -> Option<Locked<'_, Balloon>> {
        self.balloon.as_ref().map(|balloon| balloon.lock())
    }

    /// The balloon of a guest that can be asked to exchange or lend memory: one that makes blocks, and
    /// deflates the balloon instead of killing a process when memory runs out.
    fn lending_balloon(&self) -> Option<Locked<'_, Balloon>> {
        self.balloon().filter(|balloon| balloon.can_evacuate() && balloon.deflates_on_oom())
    }

    /// The size of the balloon; `None` if its driver is inactive, which also ends its loans.
    pub(super) fn size(&self) -> Option<BalloonSize> {
        let balloon = self.balloon().filter(|balloon| balloon.is_active())?;
        let (counters, pages) = (balloon.counters(), balloon.ballooned());
        let in_blocks = counters.inflated_blocks.saturating_sub(counters.deflated_blocks);
        let single = pages.0.saturating_sub(in_blocks.saturating_mul(PAGES_PER_BLOCK));
        Some(BalloonSize { pages, blocks: counters.inflated_blocks, single })
    }

    /// Checks the balloon at each change until `reached` returns true, the deadline passes, it is
    /// cancelled or the balloon stops changing; returns the last size, if any.
    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
        cancel: &AtomicBool,
        mut reached: impl FnMut(&BalloonSize) -> bool,
    ) -> Option<BalloonSize> {
        let mut last: Option<BalloonSize> = None;
        let mut moved = Instant::now();
        loop {
            let seen = self.changes.count();
            let size = self.size()?;
            let now = Instant::now();
            if last.is_none_or(|last| last.pages != size.pages) {
                moved = now;
            }
            last = Some(size);
            let end = deadline.map_or(moved + STANDSTILL, |d| d.min(moved + STANDSTILL));
            if reached(&size) || now >= end || cancel.load(Ordering::Acquire) {
                return Some(size);
            }
            self.changes.wait(seen, end - now);
        }
    }

    /// The pages that the balloon holds and those reported free, copied in parts, so that the
    /// balloon's lock is never held for long.
    fn balloon_holdings(&self, held: &mut Holdings) {
        for region in self.ram.regions() {
            let blocks = region.guest().touched_blocks();
            let (first, last) = (region.guest().start().block(), blocks.last());
            let Some(last) = last else { continue };
            for start in (first.0..=last.0).step_by(BLOCKS_AT_ONCE) {
                let end = (last.0 + 1).min(start + BLOCKS_AT_ONCE as u64);
                let Some(balloon) = self.balloon() else { return };
                let part = BlockId(start)..BlockId(end);
                balloon.copy_pages(part, &mut held.ballooned, &mut held.reported);
            }
        }
    }
}

impl GuestSide for LiveGuest {
    fn holdings(&self) -> Holdings {
        let mut held = Holdings::default();
        self.balloon_holdings(&mut held);
        if let Some(balloon) = self.balloon() {
            let told = balloon.statistics();
            let fresh = told.updated.is_some_and(|at| at.elapsed() < FRESH);
            held.guest_free = told.free_memory.filter(|_| fresh).map(Bytes);
        }
        let gpu = self.gpu.as_deref();
        held.gpu = gpu.map(|gpu| backing_ranges(gpu).into_iter().collect()).unwrap_or_default();
        held
    }

    fn discard_ballooned(
        &self,
        block: BlockId,
        pages: &PageMask,
    ) -> Result<Discarded, GuestRamError> {
        let mut total = Discarded::default();
        for run in pages.ranges_in(block) {
            total.add(self.discard_run(run)?);
        }
        Ok(total)
    }

    fn has_holes(&self, block: BlockId) -> bool {
        self.balloon().is_some_and(|balloon| balloon.has_holes(block))
    }

    fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError> {
        let holes = self.with_balloon(|balloon| balloon.keep_holes(block)) == Some(true);
        if holes && let Some(pages) = block.checked_range() {
            self.discard_run(pages)?;
        }
        Ok(holes)
    }

    fn evacuate(
        &self,
        blocks: &[BlockId],
        sync: bool,
        patience: Duration,
        cancel: &AtomicBool,
    ) -> Option<Vec<bool>> {
        let report: Arc<Mutex<Option<EvacuationReport>>> = Arc::default();
        let done = {
            let (report, changes) = (Arc::clone(&report), Arc::clone(&self.changes));
            Box::new(move |result: EvacuationReport| {
                *lock(&report) = Some(result);
                changes.announce();
            })
        };
        let count = blocks.len().saturating_u32();
        let patience = patience.min(PATIENCE + PATIENCE_PER_BLOCK * count);
        let wanted = blocks.iter().copied();
        self.balloon()?.evacuate(wanted, sync, patience, done).ok()?;
        // The balloon answers for a guest that does not; a little later, at worst.
        let deadline = Instant::now() + patience + GRACE;
        let report = loop {
            let seen = self.changes.count();
            if let Some(report) = lock(&report).take() {
                break report;
            }
            let now = Instant::now();
            if cancel.load(Ordering::Acquire) || now >= deadline {
                return None;
            }
            self.changes.wait(seen, deadline - now);
        };
        let unanswered = report.count(BlockResult::Unanswered);
        if unanswered > 0 && unanswered == report.outcomes.len() {
            return None;
        }
        let evacuated =
            |block: &BlockId| report.outcomes.contains(&(*block, BlockResult::Evacuated));
        Some(blocks.iter().map(evacuated).collect())
    }

    fn ask_free(&self, patience: Duration) {
        let updated = || self.balloon().map(|balloon| balloon.statistics().updated);
        let before = updated();
        if !self.balloon().is_some_and(|mut balloon| balloon.poll_statistics()) {
            return;
        }
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.changes.count();
            let now = Instant::now();
            if updated() != before || now >= deadline {
                return;
            }
            self.changes.wait(seen, deadline - now);
        }
    }

    fn lent(&self) -> Pages {
        self.balloon().map(|balloon| balloon.surplus()).unwrap_or_default()
    }

    /// Only with a guest that lends: from another, no blocks would follow.
    fn take_back(&self, pages: Pages, patience: Duration, cancel: &AtomicBool) -> Pages {
        let Some(before) = self.size() else { return Pages(0) };
        let pages = to_take_back(pages, before.single);
        let Some(goal) = self.lending_balloon().map(|mut balloon| {
            balloon.set_advance(pages);
            balloon.goal()
        }) else {
            return Pages(0);
        };
        let deadline = Instant::now().checked_add(patience);
        let size = self.wait_until(deadline, cancel, |size| size.pages <= goal);
        size.map_or(Pages(0), |size| Pages(before.pages.0.saturating_sub(size.pages.0)))
    }

    /// Only from a guest that lends. One that puts single pages into the balloon can make no more
    /// blocks: the request then ends.
    fn gather(
        &self,
        blocks: u32,
        patience: Duration,
        cancel: &AtomicBool,
        meanwhile: &mut dyn FnMut(),
    ) -> u32 {
        let Some(before) = self.size() else { return 0 };
        let Some((goal, least)) = self.lending_balloon().map(|mut balloon| {
            // Single pages that were taken back must be replaced, if need be by single pages.
            let least =
                if balloon.advance() > Pages(0) { balloon.target_pages() } else { Pages(0) };
            balloon.set_advance(Pages(0));
            let lent = balloon.surplus().0 + u64::from(blocks) * PAGES_PER_BLOCK;
            balloon.set_surplus(Pages(lent));
            (balloon.goal(), least)
        }) else {
            return 0;
        };
        let deadline = Instant::now().checked_add(patience);
        meanwhile();
        let size = self.wait_until(deadline, cancel, |size| {
            size.has_lent(&before, goal) && size.pages >= least
        });
        size.map_or(0, |size| size.blocks.saturating_sub(before.blocks)).saturating_u32()
    }

    fn settle(&self, keep: Pages) {
        let Some(goal) = self.balloon().map(|mut balloon| {
            balloon.set_advance(Pages(0));
            if balloon.surplus() > keep {
                balloon.set_surplus(keep);
            }
            balloon.goal()
        }) else {
            return;
        };
        self.wait_until(None, &AtomicBool::new(false), |size| size.pages <= goal);
    }
}

/// How many of `single` pages the guest takes back when asked for some of them: all if few were left,
/// since each of these would move alone whenever a block is made where it is.
fn to_take_back(asked: Pages, single: u64) -> Pages {
    Pages(if single <= asked.0 + asked.0 / 8 { single } else { asked.0 })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(blocks: u64, single: u64) -> BalloonSize {
        BalloonSize { pages: Pages(blocks * PAGES_PER_BLOCK + single), blocks, single }
    }

    #[test]
    fn few_single_pages_are_not_left() {
        assert_eq!(to_take_back(Pages(64_000), 65_536), Pages(65_536));
        assert_eq!(to_take_back(Pages(64_000), 80_000), Pages(64_000));
    }

    #[test]
    fn guest_has_lent_all_at_the_goal_or_when_single_pages_come() {
        let before = size(2, 1000);
        let goal = size(12, 1000).pages;
        assert!(!size(7, 1000).has_lent(&before, goal), "half of it");
        assert!(!size(7, 1001).has_lent(&before, goal), "a balloon page is being migrated");
        assert!(size(12, 1000).has_lent(&before, goal));
        assert!(size(7, 1256).has_lent(&before, goal), "no more blocks can be made");
    }
}
