// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread `signals`: it handles signals and guarantees that a shutdown completes.
//!
//! ```text
//!  SIGTERM, SIGINT, … ──▶ raise ──▶ the main thread ends in order ──▶ finished
//!  ExitSignal raised by anyone ──▶ a clock of 1.5 s starts ──────────▶ over: _exit
//! ```
//!
//! It takes no device's lock and waits for no other thread, so a guest that keeps the main thread
//! or a vCPU busy cannot keep the process alive: it ends within two seconds after the signal.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd};
use std::ptr;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{block_signal, create_sigset};

use crate::ending_signals::{ENDING, name};
use crate::exit::{ExitReason, ExitSignal};
use crate::host::sockets;
use crate::host::{descriptor, terminal};
use crate::mode::{StartMode, die_of};

/// Job control. Blocked, the terminal's refusals become errors that console and terminal deal
/// with, instead of stops of the whole monitor.
const TERMINAL: [libc::c_int; 2] = [libc::SIGTTOU, libc::SIGTTIN];

/// Timeout of an orderly shutdown.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Stack of the thread.
const STACK: usize = 128 << 10;

/// What the thread works on.
struct SignalWatch {
    mode: StartMode,
    exit: Arc<ExitSignal>,
    /// Written when the end is raised, and when the main thread has finished.
    wake: EventFd,
}

/// Starts the thread that handles signals, for a monitor started as `mode`. Call it before any
/// other thread is started: all inherit which signals are left to this one.
///
/// Signals that were ignored when the process started (SIGHUP by `nohup`, SIGINT and SIGQUIT by `&`
/// in a script) stay ignored, but for SIGTERM. SIGXFSZ is ignored: a write beyond the limit on
/// file sizes (RLIMIT_FSIZE) is an error of that write, to the guest or to a log.
///
/// # Errors
///
/// Where the host has no descriptor or thread left.
pub fn start(mode: StartMode, exit: &Arc<ExitSignal>) -> io::Result<()> {
    // SAFETY: sets a disposition that is no function.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let fd = take_signals()?;
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    exit.also_wake(wake.try_clone()?);
    let watch = SignalWatch { mode, exit: Arc::clone(exit), wake };
    let run = move || watch.run(fd);
    Builder::new().name("signals".into()).stack_size(STACK).spawn(run)?;
    Ok(())
}

/// Blocks the signals on this thread and returns the descriptor that they arrive at.
fn take_signals() -> io::Result<File> {
    let errno = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
    let block = |number| {
        block_signal(number).map_err(|error| match error {
            vmm_sys_util::signal::Error::BlockSignal(cause) => errno(cause),
            other => io::Error::other(other.to_string()),
        })
    };
    for number in TERMINAL {
        block(number)?;
    }
    let mut numbers = vec![libc::SIGCONT];
    // SIGTERM is the signal that ends the monitor in any case.
    let watched = |number: &libc::c_int| *number == libc::SIGTERM || !is_ignored(*number);
    numbers.extend(ENDING.iter().map(|(number, _)| *number).filter(watched));
    for number in &numbers {
        block(*number)?;
    }
    let set = create_sigset(&numbers).map_err(errno)?;
    // SAFETY: the set is initialised, and the kernel only reads it.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and this is its only owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Whether the process was started with `number` ignored.
fn is_ignored(number: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, the call only writes the current one to the given location.
    if unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it has filled the value in.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

impl SignalWatch {
    fn run(&self, mut signals: File) {
        let mut deadline = None;
        loop {
            let wait = deadline.map(|end: Instant| end.saturating_duration_since(Instant::now()));
            if let Err(error) = wait_for(&signals, &self.wake, wait) {
                error!(%error, "cannot wait for signals");
                self.exit.raise(ExitReason::HostError(error.to_string()));
            }
            // Only wakes us; the count means nothing.
            let _ = self.wake.read();
            while let Some(number) = next_signal(&mut signals) {
                self.on_signal(number, deadline.is_some());
            }
            let Some(reason) = self.exit.reason() else { continue };
            let end = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() >= end {
                self.end_hard(reason, "orderly shutdown did not finish within 1.5 s");
            }
        }
    }

    fn on_signal(&self, number: u32, ending: bool) {
        let Some(name) = name(number) else {
            // SIGCONT: the shell may have brought us to the foreground.
            return terminal::reenter();
        };
        self.exit.raise(ExitReason::Stopped(name.into()));
        if ending && let Some(reason) = self.exit.reason() {
            self.end_hard(reason, "second signal: exiting without an orderly shutdown");
        }
    }

    /// Ends the process, in any state of its other threads.
    fn end_hard(&self, reason: &ExitReason, why: &str) -> ! {
        terminal::restore();
        sockets::remove_all();
        descriptor::say(&format!("{reason} ({why})"));
        if let Some(signal) = self.mode.dies_of(reason) {
            die_of(signal);
        }
        // SAFETY: ends the process; no destructor has to run, as the kernel frees all it holds.
        unsafe { libc::_exit(self.mode.exit_code(reason).into()) }
    }
}

fn wait_for(signals: &File, wake: &EventFd, limit: Option<Duration>) -> rustix::io::Result<()> {
    // SAFETY: `wake` is open for as long as the borrow is used.
    let wake = unsafe { rustix::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(wake)) };
    let mut fds = [
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(wake, PollFlags::IN),
    ];
    let limit = limit.map(|limit| Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The number of the next signal that has arrived.
fn next_signal(signals: &mut File) -> Option<u32> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    signals.read_exact(&mut info).ok()?;
    // ssi_signo is the first field, a u32 (signalfd(2)).
    Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;

    #[test]
    fn ignored_signals_are_told_from_others() {
        // HUP and similar signals would need a separate test process: SIGPIPE is ignored in
        // every Rust program, SIGCHLD is not.
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGCHLD));
    }

    #[test]
    fn a_raised_end_wakes_the_thread() {
        let mut events = EventLoop::new().unwrap();
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        events.handle().exit().also_wake(wake.try_clone().unwrap());
        events.handle().exit().raise(ExitReason::PowerOff);
        assert_eq!(wake.read().unwrap(), 1);
        assert_eq!(events.run(), ExitReason::PowerOff);
    }
}
