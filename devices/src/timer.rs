// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A timer for devices that put something off: a file descriptor for an event loop.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that goes off once, by a file descriptor that becomes readable.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
    deadline: Option<Instant>,
}

impl Timer {
    pub(crate) fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, deadline: None })
    }

    /// Expires at `deadline`, in place of any earlier setting; `None` stops it.
    pub(crate) fn set(&mut self, deadline: Option<Instant>) {
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
            tracing::error!(%error, "cannot set a device's timer");
        }
    }

    /// Makes the descriptor unreadable until the timer goes off again.
    pub(crate) fn acknowledge(&mut self) {
        self.deadline = None;
        let mut count = [0; 8];
        // EAGAIN: it was set again meanwhile.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
