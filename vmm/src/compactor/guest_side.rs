// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass needs of a machine's devices, with the machine running.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use devices::balloon::{Balloon, EvacuationReport, Outcome};
use devices::gpu::Gpu;
use mm::backing::Discarded;
use mm::blocks::map::Holdings;
use mm::blocks::mask::PageMask;
use mm::blocks::pass::GuestSide;
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::BlockId;

/// How long the guest may take to empty a handful of blocks.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much longer the balloon may take to say that the guest did not.
const GRACE: Duration = Duration::from_secs(1);

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

    fn balloon(&self) -> Option<MutexGuard<'_, Balloon>> {
        self.balloon.as_ref().map(|b| b.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl GuestSide for LiveGuest {
    fn holdings(&self) -> Holdings {
        let ballooned = self.balloon().map(|b| b.page_set()).unwrap_or_default();
        let gpu = self.gpu.as_ref().map(|gpu| {
            let gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            gpu.backing_ranges().collect()
        });
        Holdings { ballooned, gpu: gpu.unwrap_or_default(), ..Holdings::default() }
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

    fn evacuate(&self, blocks: &[BlockId], patience: Duration) -> Option<Vec<bool>> {
        let (tell, told) = mpsc::sync_channel(1);
        let done = Box::new(move |report: EvacuationReport| {
            // Nobody listens any more if the guest has answered too late.
            let _ = tell.try_send(report);
        });
        let patience = patience.min(PATIENCE);
        let wanted = blocks.iter().copied();
        self.balloon()?.evacuate(wanted, false, patience, done).ok()?;
        // The balloon answers for a guest that does not; a little later, at worst.
        let report = told.recv_timeout(patience + GRACE).ok()?;
        let vacated = |block: &BlockId| report.outcomes.contains(&(*block, Outcome::Vacated));
        Some(blocks.iter().map(vacated).collect())
    }
}
