// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event-loop side of a device: each queue's event leads to one round of processing.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

/// A transport, which runs the queues of one device.
pub trait QueueHost: Send + Sync {
    /// One event per queue, in the order of their numbers.
    fn queue_events(&self) -> &[EventFd];

    /// Whether the event of queue `queue` is watched: not if the host's kernel does that.
    fn is_watched(&self, _queue: u16) -> bool {
        true
    }

    /// Processes queue `queue` once, and deals with the device's failure if it fails.
    fn process_queue(&self, queue: u16);
}

/// Subscribes the queues of one device to an event loop.
///
/// Events are watched edge-triggered and never read: each notification leads to a round that begins
/// after it, for one system call less. What comes during the round wakes the loop again.
pub struct Runner {
    host: Arc<dyn QueueHost>,
}

impl Runner {
    /// A runner for the queues of `host`.
    pub fn new(host: Arc<dyn QueueHost>) -> Self {
        Self { host }
    }
}

impl MutEventSubscriber for Runner {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, event) in (0..).zip(self.host.queue_events()) {
            if !self.host.is_watched(queue) {
                continue;
            }
            let when = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(error) = ops.add(Events::with_data(event, queue.into(), when)) {
                tracing::error!(queue, %error, "cannot watch a queue: the device will not respond");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if let Ok(queue) = u16::try_from(events.data()) {
            self.host.process_queue(queue);
        }
    }
}
