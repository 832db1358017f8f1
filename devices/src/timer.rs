// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A timer for devices that put something off: a file descriptor for an event loop.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use mm::units::SaturatingInto;
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
            tv_sec: delay.as_secs().saturating_i64(),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if let Err(error) = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(%error, "cannot set a device's timer");
        }
    }

    /// Expires at `at` or, if it is set to an earlier time, then.
    pub(crate) fn set_by(&mut self, at: Instant) {
        self.set(Some(self.deadline.map_or(at, |deadline| deadline.min(at))));
    }

    /// Makes the descriptor unreadable until the timer goes off again; whether it had gone off.
    /// Without a system call unless it was due: rounds of processing that have another reason ask, too.
    pub(crate) fn acknowledge(&mut self) -> bool {
        if self.deadline.is_none_or(|deadline| deadline > Instant::now()) {
            return false;
        }
        let mut count = [0; 8];
        // EAGAIN: it is just about to go off, and stays set until then or until it is set again.
        let gone_off = rustix::io::read(&self.fd, &mut count).is_ok();
        if gone_off {
            self.deadline = None;
        }
        gone_off
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

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(timer: &Timer, seconds: i64) -> bool {
        let mut fds = [PollFd::new(timer, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
    }

    #[test]
    fn goes_off_once_and_is_quiet_when_acknowledged() {
        let mut timer = Timer::new().unwrap();
        timer.set(Some(Instant::now()));
        assert!(readable(&timer, 60));
        timer.acknowledge();
        assert!(!readable(&timer, 0));
        timer.set(Some(Instant::now()));
        assert!(readable(&timer, 60), "set again, it goes off again");
    }

    #[test]
    fn an_acknowledgement_before_its_time_leaves_it_set() {
        let mut timer = Timer::new().unwrap();
        let soon = Instant::now() + Duration::from_millis(50);
        timer.set(Some(soon));
        timer.acknowledge();
        timer.set(Some(soon));
        assert!(readable(&timer, 60));
    }
}
