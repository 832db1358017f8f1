// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's journal: counters for metrics, and a rate-limited log, as the guest can cause
//! every line of it.

use std::fmt::Display;

use super::counters::BalloonCounters;
use crate::throttle::Throttle;

/// The record of one balloon's events.
#[derive(Debug, Default)]
pub(super) struct EventJournal {
    pub(super) counters: BalloonCounters,
    log: Throttle,
}

impl EventJournal {
    /// Counts a buffer that was left alone because of `cause`, and logs it.
    pub(super) fn bad_buffer(&mut self, cause: impl Display) {
        self.counters.bad_buffers += 1;
        self.warn(cause);
    }

    /// Logs `cause`, unless there have been too many lines lately.
    pub(super) fn warn(&mut self, cause: impl Display) {
        if let Some(suppressed) = self.log.admit() {
            tracing::warn!(suppressed, "balloon: {cause}");
        }
    }
}
