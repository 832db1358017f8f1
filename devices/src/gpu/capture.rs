// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work on a device from outside its queues, in rounds between which the device is free for others:
//! pictures, refreshes, and walks over all backings.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mm::units::GuestRange;

use super::device::Gpu;
use super::engine::Engine;
use super::resource::BackingPosition;
use super::scanout::Surface;
use crate::display::{Frame, FrameError, ScanoutId, Snapshot};
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// Time between two rounds, in which a thread that waits for the device gets it.
const GAP: Duration = Duration::from_micros(50);
/// How often a picture is begun anew because the guest shows something else meanwhile.
const ATTEMPTS: u32 = 8;

/// Why there is no picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// The scanout shows nothing.
    #[error("the scanout shows nothing")]
    Dark,
    /// The guest changes what the scanout shows all the time.
    #[error("the guest changed what the scanout shows {ATTEMPTS} times during the capture")]
    Unsteady,
    /// There is no memory for it.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A picture of a scanout that is being taken, a strip at a time.
#[derive(Debug)]
pub struct Capture {
    scanout: ScanoutId,
    of: Option<(Surface, Frame)>,
    attempts: u32,
}

impl Capture {
    /// A picture of `scanout`, not begun yet.
    pub fn new(scanout: ScanoutId) -> Self {
        Self { scanout, of: None, attempts: 0 }
    }

    pub(super) fn run(
        &mut self,
        engine: &Engine,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Result<Option<Snapshot>, CaptureError> {
        let surface = engine.scanouts().surface(self.scanout).ok_or(CaptureError::Dark)?;
        let (surface, mut frame) = match self.of.take() {
            Some((begun, frame)) if begun == surface => (begun, frame),
            _ if self.attempts == ATTEMPTS => return Err(CaptureError::Unsteady),
            _ => {
                self.attempts += 1;
                (surface, engine.frame(surface.area.size)?)
            }
        };
        match engine.capture(mem, surface, &mut frame, deadline) {
            Ok(Progress::Done) => Ok(Some(Snapshot { frame, cursor: engine.cursor(self.scanout) })),
            Ok(Progress::More) => {
                self.of = Some((surface, frame));
                Ok(None)
            }
            Err(_) => Err(CaptureError::Dark),
        }
    }
}

/// Calls `round` with the device and a deadline until it gives a result; the device is unlocked in
/// between.
fn in_rounds<T>(
    gpu: &Mutex<Gpu>,
    mut round: impl FnMut(&mut Gpu, &mut Deadline) -> Option<T>,
) -> T {
    loop {
        let mut device = gpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = round(&mut device, &mut Deadline::new()) {
            return result;
        }
        drop(device);
        // The mutex is not fair: without a pause this thread would take it again at once.
        std::thread::sleep(GAP);
    }
}

/// The picture that a scanout shows, as it is in guest memory, with its cursor. Locks the device
/// for a few milliseconds at a time; takes as long as copying the picture.
///
/// # Errors
///
/// [`CaptureError`] when the scanout shows nothing, or there is no memory for the picture.
pub fn capture(gpu: &Mutex<Gpu>, scanout: ScanoutId) -> Result<Snapshot, CaptureError> {
    let mut capture = Capture::new(scanout);
    in_rounds(gpu, |gpu, deadline| gpu.capture(&mut capture, deadline).transpose())
}

/// Gives the display what it lacks of a scanout's picture, for a viewer's first look at a guest
/// that draws nothing. Locks the device for a few milliseconds at a time.
pub fn refresh(gpu: &Mutex<Gpu>, scanout: ScanoutId) {
    in_rounds(gpu, |gpu, deadline| {
        (gpu.refresh(scanout, deadline) == Progress::Done).then_some(())
    });
}

/// Guest pages that resources are backed by, in no order. Locks the device for a few milliseconds
/// at a time, so that resources may come and go during the walk.
pub fn backing_ranges(gpu: &Mutex<Gpu>) -> Vec<GuestRange> {
    let mut at = BackingPosition::default();
    let mut ranges = Vec::new();
    in_rounds(gpu, |gpu, deadline| {
        (gpu.backing_ranges(&mut at, &mut ranges, deadline) == Progress::Done).then_some(())
    });
    ranges
}
