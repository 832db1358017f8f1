// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's memory pressure: pressure stall information
//! (Documentation/accounting/psi.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The time over which the kernel adds stalls up.
const WINDOW: Duration = Duration::from_secs(2);

/// A trigger set on /proc/pressure/memory.
#[derive(Debug)]
pub(super) struct Pressure {
    file: File,
}

impl Pressure {
    /// Fires when some task has waited for memory for `stall` in any window of two seconds.
    ///
    /// Fails on a kernel without PSI, and without the right to set triggers (windows of whole
    /// multiples of two seconds need none since Linux 6.5).
    pub(super) fn watch(stall: Duration) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
        let trigger = format!("some {} {}\0", stall.as_micros(), WINDOW.as_micros());
        file.write_all(trigger.as_bytes())?;
        Ok(Self { file })
    }

    /// Whether it has fired since the last call.
    pub(super) fn fired(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::PRI)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&at_once)), Ok(1)) && fds[0].revents().contains(PollFlags::PRI)
    }
}
