// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass needs of a machine's devices, with the machine running.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::balloon::{Balloon, BlockResult, EvacuationReport};
use devices::gpu::{Gpu, WantsBlocks};
use mm::backing::Discarded;
use mm::blocks::map::Holdings;
use mm::blocks::mask::PageMask;
use mm::blocks::pass::GuestSide;
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::{BlockId, Bytes, PAGES_PER_BLOCK, Pages};

/// How long the guest may take to empty a handful of blocks.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much longer the balloon may take to say that the guest did not.
const GRACE: Duration = Duration::from_secs(1);
/// What the guest said of its free memory is of use for so long.
const FRESH: Duration = Duration::from_secs(5);
/// Blocks that the guest is asked to lend at once: few enough for it to be seen to get on.
const PORTION: u32 = 32;
/// A guest that has moved nothing into the balloon, or out of it, for so long does not any more.
const STANDSTILL: Duration = Duration::from_secs(3);
/// How often the balloon is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether a balloon is to grow or to shrink.
#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// A balloon as the event loop and the compactor share it.
pub type SharedBalloon = Arc<Mutex<Balloon>>;

/// A machine's memory and those of its devices that hold some.
#[derive(Clone)]
pub struct LiveGuest {
    ram: Arc<GuestRam>,
    balloon: Option<SharedBalloon>,
    gpu: Option<Arc<Mutex<Gpu>>>,
}

impl LiveGuest {
    /// Of memory, the balloon and the display device, as far as the machine has them.
    pub fn new(
        ram: Arc<GuestRam>,
        balloon: Option<SharedBalloon>,
        gpu: Option<Arc<Mutex<Gpu>>>,
    ) -> Self {
        Self { ram, balloon, gpu }
    }

    /// The memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Whether the guest can be asked to empty blocks.
    pub fn can_evacuate(&self) -> bool {
        self.balloon().is_some_and(|balloon| balloon.can_evacuate())
    }

    /// Has `tell` called when the display device could do with huge pages; `None` ends it.
    pub(super) fn on_large_gpu_buffer(&self, tell: Option<WantsBlocks>) {
        if let Some(gpu) = &self.gpu {
            gpu.lock().unwrap_or_else(PoisonError::into_inner).on_large_backing(tell);
        }
    }

    fn balloon(&self) -> Option<MutexGuard<'_, Balloon>> {
        self.balloon.as_ref().map(|b| b.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the balloon has come to `goal` from the side that `way` says, as long as it gets
    /// any nearer. Up and down again is no nearer: so goes a guest that has no more to give.
    fn wait_for(
        &self,
        goal: Pages,
        way: Way,
        deadline: Option<Instant>,
        cancel: &AtomicBool,
    ) -> Pages {
        let mut left = u64::MAX;
        let mut moved = Instant::now();
        loop {
            let now = Instant::now();
            // Not active: its driver is gone, and with it what it had lent.
            let Some((size, true)) = self.balloon().map(|b| (b.ballooned(), b.is_active())) else {
                return Pages(0);
            };
            let now_left = match way {
                Way::Up => goal.0.saturating_sub(size.0),
                Way::Down => size.0.saturating_sub(goal.0),
            };
            if now_left < left {
                (left, moved) = (now_left, now);
            }
            let over = deadline.is_some_and(|deadline| deadline <= now);
            let stands = now.duration_since(moved) > STANDSTILL;
            if left == 0 || over || stands || cancel.load(Ordering::Relaxed) {
                return size;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl GuestSide for LiveGuest {
    fn holdings(&self) -> Holdings {
        let mut held = Holdings::default();
        if let Some(balloon) = self.balloon() {
            held.ballooned = balloon.page_set();
            held.reported = balloon.reported_set().clone();
            let told = balloon.statistics();
            let fresh = told.updated.is_some_and(|at| at.elapsed() < FRESH);
            held.guest_free = told.free_memory.filter(|_| fresh).map(Bytes);
        }
        let gpu = self.gpu.as_ref().map(|gpu| {
            let gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            gpu.backing_ranges().collect()
        });
        held.gpu = gpu.unwrap_or_default();
        held
    }

    fn discard_ballooned(
        &self,
        block: BlockId,
        pages: &PageMask,
    ) -> Result<Discarded, GuestRamError> {
        let mut total = Discarded::default();
        if let Some(mut balloon) = self.balloon() {
            for run in pages.ranges_in(block) {
                total.add(balloon.discard_ballooned(run)?);
            }
        }
        Ok(total)
    }

    fn has_holes(&self, block: BlockId) -> bool {
        self.balloon().is_some_and(|balloon| balloon.has_holes(block))
    }

    fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError> {
        self.balloon().map_or(Ok(false), |mut balloon| balloon.keep_holes(block))
    }

    fn evacuate(
        &self,
        blocks: &[BlockId],
        sync: bool,
        patience: Duration,
        cancel: &AtomicBool,
    ) -> Option<Vec<bool>> {
        let (tell, told) = mpsc::sync_channel(1);
        let done = Box::new(move |report: EvacuationReport| {
            // Nobody listens any more if the guest has answered too late.
            let _ = tell.try_send(report);
        });
        let patience = patience.min(PATIENCE);
        let wanted = blocks.iter().copied();
        self.balloon()?.evacuate(wanted, sync, patience, done).ok()?;
        // The balloon answers for a guest that does not; a little later, at worst.
        let deadline = Instant::now() + patience + GRACE;
        let report = loop {
            match told.recv_timeout(LOOK_EVERY) {
                Ok(report) => break report,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if cancel.load(Ordering::Relaxed) || Instant::now() > deadline {
                        return None;
                    }
                }
            }
        };
        let unanswered = report.count(BlockResult::Unanswered);
        if unanswered > 0 && unanswered == report.outcomes.len() {
            return None;
        }
        let vacated = |block: &BlockId| report.outcomes.contains(&(*block, BlockResult::Vacated));
        Some(blocks.iter().map(vacated).collect())
    }

    fn ask_free(&self, patience: Duration) {
        let updated = || self.balloon().map(|balloon| balloon.statistics().updated);
        let before = updated();
        if !self.balloon().is_some_and(|mut balloon| balloon.poll_statistics()) {
            return;
        }
        let deadline = Instant::now() + patience;
        while updated() == before && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn lent(&self) -> Pages {
        self.balloon().map(|balloon| balloon.surplus()).unwrap_or_default()
    }

    /// Only of a guest that would take its memory back rather than kill a process for want of it.
    fn gather(&self, blocks: u32, patience: Duration, cancel: &AtomicBool) -> u32 {
        let deadline = Instant::now().checked_add(patience);
        let mut came = 0;
        while came < blocks && !cancel.load(Ordering::Relaxed) {
            let portion = PORTION.min(blocks - came);
            let Some((before, goal)) = self.balloon().and_then(|mut balloon| {
                if !balloon.can_evacuate() || !balloon.deflates_on_oom() {
                    return None;
                }
                let lent = balloon.surplus().0 + u64::from(portion) * PAGES_PER_BLOCK;
                balloon.set_surplus(Pages(lent));
                let goal = balloon.target_pages().0.saturating_add(balloon.surplus().0);
                Some((balloon.ballooned(), Pages(goal)))
            }) else {
                break;
            };
            let size = self.wait_for(goal, Way::Up, deadline, cancel);
            let more = size.0.saturating_sub(before.0) / PAGES_PER_BLOCK;
            came += u32::try_from(more).unwrap_or(portion).min(portion);
            if size < goal {
                break;
            }
        }
        came
    }

    fn settle(&self, keep: Pages) {
        let Some(goal) = self.balloon().map(|mut balloon| {
            if balloon.surplus() > keep {
                balloon.set_surplus(keep);
            }
            Pages(balloon.target_pages().0.saturating_add(balloon.surplus().0))
        }) else {
            return;
        };
        self.wait_for(goal, Way::Down, None, &AtomicBool::new(false));
    }
}
