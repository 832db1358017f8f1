// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling the monitor of large buffers, at a rate that a guest cannot drive.

use std::time::Duration;

use crate::throttle::Throttle;

/// Called with the device locked, possibly on a vCPU's thread.
pub type WantsBlocks = Box<dyn Fn() + Send>;

/// Calls that are made at once; a desktop makes a handful of large buffers when it starts.
const BURST: u32 = 8;
/// Time after which one more call is made.
const REFILL: Duration = Duration::from_secs(10);

/// Rate-limited notification of new backings that may cover a whole block.
pub(super) struct LargeBackings {
    tell: Option<WantsBlocks>,
    throttle: Throttle,
}

impl LargeBackings {
    /// Not reported yet.
    pub(super) fn new() -> Self {
        Self { tell: None, throttle: Throttle::new(BURST, REFILL) }
    }

    /// Calls `tell` from now on; `None` disables it.
    pub(super) fn set(&mut self, tell: Option<WantsBlocks>) {
        self.tell = tell;
    }

    /// Notes a new large backing. Above the rate the call is skipped: the receiver runs a pass over
    /// guest memory, which it also does periodically.
    pub(super) fn note(&mut self) {
        if let Some(tell) = &self.tell
            && self.throttle.admit().is_some()
        {
            tell();
        }
    }
}
