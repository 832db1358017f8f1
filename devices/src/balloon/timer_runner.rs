// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The place of the balloon's timer in the event loop.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Balloon;
use crate::virtio::DeviceLock;

/// Subscribes a balloon's timer to an event loop: the thread that processes its queues.
pub struct TimerRunner {
    balloon: Arc<DeviceLock<Balloon>>,
}

impl TimerRunner {
    /// A runner for the timer of `balloon`.
    pub fn new(balloon: Arc<DeviceLock<Balloon>>) -> Self {
        Self { balloon }
    }
}

impl MutEventSubscriber for TimerRunner {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let balloon = self.balloon.lock();
        if let Err(error) = ops.add(Events::new_raw(balloon.timer_fd(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch the balloon's timer");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.balloon.lock().on_timer();
    }
}
