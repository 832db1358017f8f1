// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals that ask the process to end become an orderly end of the event loop: terminal, socket
//! and metrics are left as they should be.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::error;
use vmm_sys_util::signal::{block_signal, create_sigset};

use crate::exit::{ExitReason, ExitSignal};

/// What is watched, by name.
const WATCHED: [(libc::c_int, &str); 4] = [
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
];

/// Watches for signals from within the event loop.
pub struct Signals {
    fd: File,
    exit: Arc<ExitSignal>,
}

impl Signals {
    /// Takes the signals away from this thread and all that it starts from now on: call it before
    /// the first.
    pub fn watch(exit: Arc<ExitSignal>) -> io::Result<Self> {
        let errno = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        let numbers = WATCHED.map(|(number, _)| number);
        for number in numbers {
            block_signal(number).map_err(|error| match error {
                vmm_sys_util::signal::Error::BlockSignal(cause) => errno(cause),
                other => io::Error::other(other.to_string()),
            })?;
        }
        let set = create_sigset(&numbers).map_err(errno)?;
        // SAFETY: the set is initialised, and the kernel only reads it.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else has it.
        Ok(Self { fd: unsafe { File::from_raw_fd(fd) }, exit })
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.fd.as_raw_fd(), EventSet::IN)) {
            error!(%error, "cannot watch for signals");
            self.exit.raise(ExitReason::HostError(error.to_string()));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        if self.fd.read_exact(&mut info).is_err() {
            return;
        }
        // ssi_signo is the first field, a u32 (signalfd(2)).
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        let name = WATCHED
            .iter()
            .find(|&&(watched, _)| u32::try_from(watched) == Ok(number))
            .map_or("a signal", |&(_, name)| name);
        self.exit.raise(ExitReason::Stopped(name.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;

    #[test]
    fn a_signal_ends_the_loop() {
        let mut events = EventLoop::new().unwrap();
        let signals = Signals::watch(Arc::clone(events.handle().exit())).unwrap();
        events.add(Box::new(signals));
        // To this thread alone: others of the test process have the signal unblocked.
        // SAFETY: asks for a number, nothing else.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: the thread exists, as it is this one.
        let sent = unsafe { libc::pthread_kill(this, libc::SIGTERM) };
        assert_eq!(sent, 0);
        assert_eq!(events.run(), ExitReason::Stopped("SIGTERM".into()));
    }
}
