// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The active state: queues, completed requests, and waiting queues.

use std::sync::Arc;

use mm::units::SaturatingInto;

use crate::block::protocol::Status;
use crate::virtio::{ChainMemory, DeviceQueue, Interrupt, QueueError};

/// State between activation and reset.
pub(super) struct ActiveBlock {
    pub(super) features: u64,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Vec<DeviceQueue>,
    /// What the requests at the head of each queue wait for, if they do.
    pub(super) waiting: Vec<Option<Waiting>>,
    /// Queues with answers that the driver was not notified of.
    pub(super) answered: Vec<bool>,
}

impl ActiveBlock {
    /// Writes the status byte, the last one of `buffer`, and returns the buffer.
    pub(super) fn answer(
        &mut self,
        at: usize,
        head: u16,
        buffer: &ChainMemory,
        status: Status,
    ) -> Result<(), QueueError> {
        let Some(queue) = self.queues.get_mut(at) else { return Ok(()) };
        let len = buffer.writable.len();
        buffer.writable.write(len.saturating_sub(1), &[status as u8]);
        self.answered[at] = true;
        queue.push(head, len.saturating_u32())
    }

    /// Interrupts the driver for queues with completed requests, unless it suppresses interrupts.
    pub(super) fn tell(&mut self) {
        for (queue, answered) in self.queues.iter_mut().zip(&mut self.answered) {
            if std::mem::take(answered) {
                queue.signal();
            }
        }
    }

    /// Has the event loop look at the queues that waited for this.
    pub(super) fn wake(&mut self, what: Waiting) {
        for (queue, waiting) in self.queues.iter().zip(&mut self.waiting) {
            if waiting.take_if(|waiting| *waiting == what).is_some() {
                queue.kick_self();
            }
        }
    }
}

/// Why a queue's next request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The rate limit does not admit it yet.
    Limit,
    /// The device has its maximum of requests in flight.
    Room,
}
