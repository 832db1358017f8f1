// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work on a device from outside its queues, in rounds between which the device is free for others:
//! pictures, refreshes, and walks over all backings.

use std::thread;
use std::time::Duration;

use mm::units::GuestRange;

use super::capture::{Capture, CaptureError};
use super::device::Gpu;
use super::resource::BackingPosition;
use crate::display::{FrameSnapshot, ScanoutId};
use crate::virtio::{Deadline, DeviceLock, Progress};

/// Pause between two rounds, so that waiting threads get the lock: the mutex is not fair, and
/// without a pause this thread would take it again immediately.
const GAP: Duration = Duration::from_micros(50);

/// Ranges that one round of a walk over all backings finds at most.
const RANGES: usize = 8192;

/// Calls `round` with the device and a deadline until it is done; the device is unlocked in between.
fn in_rounds(gpu: &DeviceLock<Gpu>, mut round: impl FnMut(&mut Gpu, &mut Deadline) -> Progress) {
    while round(&mut gpu.lock(), &mut Deadline::new()) == Progress::More {
        thread::sleep(GAP);
    }
}

/// The picture on a scanout, with its cursor. Locks the device for a few milliseconds at a time;
/// takes as long as copying the picture.
///
/// # Errors
///
/// [`CaptureError`] when the scanout is disabled or has no resource, or there is no memory for the
/// picture.
pub fn capture(gpu: &DeviceLock<Gpu>, scanout: ScanoutId) -> Result<FrameSnapshot, CaptureError> {
    let mut capture = Capture::new(scanout);
    loop {
        let picture = gpu.lock().capture(&mut capture, &mut Deadline::new())?;
        if let Some(picture) = picture {
            return Ok(picture);
        }
        capture.tidy();
        thread::sleep(GAP);
    }
}

/// Copies missing parts of a scanout's picture to the display, for a new viewer of a guest that
/// does not draw. Locks the device for a few milliseconds at a time.
pub fn refresh(gpu: &DeviceLock<Gpu>, scanout: ScanoutId) {
    in_rounds(gpu, |gpu, deadline| gpu.refresh(scanout, deadline));
}

/// Guest pages that resources are backed by, in no order. Locks the device for a few milliseconds
/// at a time, so resources may change during the walk.
pub fn backing_ranges(gpu: &DeviceLock<Gpu>) -> Vec<GuestRange> {
    let mut at = BackingPosition::default();
    let mut ranges = Vec::new();
    // Room for the ranges of one round is made before it: growing a long list takes long.
    let mut found = Vec::with_capacity(RANGES);
    loop {
        let mut deadline = Deadline::of_work(RANGES as u64 * Deadline::ENTRY);
        let progress = gpu.lock().backing_ranges(&mut at, &mut found, &mut deadline);
        ranges.append(&mut found);
        if progress == Progress::Done {
            return ranges;
        }
        thread::sleep(GAP);
    }
}
