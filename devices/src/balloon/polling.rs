// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The statistics queue, with inverted roles: the device keeps a buffer until it polls, and the
//! statistics arrive with the next buffer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event_journal::EventJournal;
use super::protocol::Stat;
use super::stats::{MAX_ENTRIES, Statistics};
use crate::virtio::{Deadline, DeviceQueue, Progress, QueueError, Segments};

/// Polls statistics.
#[derive(Debug, Default)]
pub(super) struct Polling {
    statistics: Statistics,
    /// How often; never if zero.
    interval: Duration,
    /// When next.
    next: Option<Instant>,
    /// The buffer to return for the next poll.
    buffer: Option<u16>,
}

impl Polling {
    /// Polls every `interval` once a driver is up; never if it is zero.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, ..Self::default() }
    }

    /// The last figures.
    pub(super) fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// The next poll is one interval from now.
    pub(super) fn schedule(&mut self) {
        self.next = (!self.interval.is_zero()).then(|| Instant::now() + self.interval);
    }

    /// When the next poll is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Whether the next poll is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|at| at <= now)
    }

    /// Returns the buffer, which makes the driver send the next one; false if there is no buffer.
    pub(super) fn poll(&mut self, queue: &mut DeviceQueue, journal: &mut EventJournal) -> bool {
        let Some(head) = self.buffer.take() else { return false };
        match queue.push(head, 0) {
            Ok(()) => {
                queue.signal();
                true
            }
            Err(error) => {
                journal.warn(error);
                false
            }
        }
    }

    /// Reads statistics, and keeps the buffer until the next poll.
    pub(super) fn process(
        &mut self,
        queue: &mut DeviceQueue,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        while !deadline.passed()
            && let Some(chain) = queue.pop()?
        {
            deadline.charge(Deadline::COMMAND);
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            match Segments::collect(chain, queue.size()) {
                Ok(buffer) => {
                    let mut raw = [0; MAX_ENTRIES * size_of::<Stat>()];
                    let len = buffer.read(&mem, 0, &mut raw);
                    deadline.charge((len / size_of::<Stat>()) as u64 * Deadline::ENTRY);
                    journal.counters.stats_unknown += self.statistics.update(&raw[..len]);
                    journal.counters.stats_updates_count += 1;
                }
                Err(error) => {
                    journal.bad_buffer(error);
                    journal.counters.stats_update_fails += 1;
                }
            }
            // One buffer is enough for polling; a driver that sends more gets the older one back.
            if let Some(older) = self.buffer.replace(head) {
                queue.push(older, 0)?;
            }
        }
        queue.finish();
        Ok(Progress::more_if(deadline.passed()))
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.interval);
    }
}
