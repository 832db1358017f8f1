// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capture of a scanout's picture, one strip at a time.

use super::command_engine::CommandEngine;
use super::scanout::Surface;
use crate::display::{Frame, FrameError, FrameSnapshot, ScanoutId};
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// Attempts at a capture, which starts again if the guest changes the scanout.
const ATTEMPTS: u32 = 8;

/// Why there is no picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// The scanout shows nothing.
    #[error("the scanout is disabled or has no resource")]
    Dark,
    /// The guest keeps changing the scanout.
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
    /// Abandoned captures. Freeing them takes long, so it happens after the device's lock is
    /// released.
    stale: Option<Frame>,
}

impl Capture {
    /// A picture of `scanout`, not begun yet.
    pub fn new(scanout: ScanoutId) -> Self {
        Self { scanout, of: None, attempts: 0, stale: None }
    }

    /// Frees abandoned captures; called between two rounds, with the device unlocked.
    pub(super) fn tidy(&mut self) {
        self.stale = None;
    }

    pub(super) fn run(
        &mut self,
        engine: &CommandEngine,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Result<Option<FrameSnapshot>, CaptureError> {
        let surface = engine.scanouts().surface(self.scanout).ok_or(CaptureError::Dark)?;
        let (surface, mut frame) = match self.of.take() {
            Some((begun, frame)) if begun == surface => (begun, frame),
            Some((_, frame)) => {
                self.stale = Some(frame);
                return Ok(None);
            }
            None if self.attempts == ATTEMPTS => return Err(CaptureError::Unsteady),
            None => {
                self.attempts += 1;
                (surface, engine.frame(surface.area.size)?)
            }
        };
        match engine.capture(mem, surface, &mut frame, deadline) {
            Ok(Progress::Done) => {
                Ok(Some(FrameSnapshot { frame, cursor: engine.cursor(self.scanout) }))
            }
            Ok(Progress::More) => {
                self.of = Some((surface, frame));
                Ok(None)
            }
            Err(_) => {
                self.stale = Some(frame);
                Err(CaptureError::Dark)
            }
        }
    }
}
