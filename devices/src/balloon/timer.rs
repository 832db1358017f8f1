// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's timer, and its place in the event loop.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::Balloon;

/// A timer that goes off once, by a file descriptor that becomes readable.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
    deadline: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, deadline: None })
    }

    /// Goes off at `deadline`, whatever was set before; `None` stops it.
    pub(super) fn set(&mut self, deadline: Option<Instant>) {
        if deadline == self.deadline {
            return;
        }
        self.deadline = deadline;
        let delay = match deadline {
            None => Duration::ZERO,
            // Zero would stop it.
            Some(at) => at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)),
        };
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if let Err(error) = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(%error, "cannot set the balloon's timer");
        }
    }

    /// Makes the descriptor unreadable until the timer goes off again.
    pub(super) fn acknowledge(&mut self) {
        self.deadline = None;
        let mut count = [0; 8];
        // EAGAIN: it was set again meanwhile.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}

/// Subscribes a balloon's timer to an event loop: the thread that processes its queues.
pub struct TimerRunner {
    balloon: Arc<Mutex<Balloon>>,
}

impl TimerRunner {
    /// A runner for the timer of `balloon`.
    pub fn new(balloon: Arc<Mutex<Balloon>>) -> Self {
        Self { balloon }
    }
}

impl MutEventSubscriber for TimerRunner {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let balloon = self.balloon.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = ops.add(Events::new_raw(balloon.timer_fd(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch the balloon's timer");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.balloon.lock().unwrap_or_else(PoisonError::into_inner).on_timer();
    }
}
