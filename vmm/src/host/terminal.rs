// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal in raw mode while a guest has it, and as it was on every way out.
//!
//! Ways out: a normal end and an early return (`RawTerminal` is dropped), a panic (a hook, since a
//! release build aborts), a deadly signal (a handler). Only SIGKILL leaves a raw terminal behind.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_sys_util::signal::register_signal_handler;

/// How the terminal was. Written once, before `RAW` is set.
static COOKED: OnceLock<Termios> = OnceLock::new();
/// Whether it is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end a process by its own fault, or by a filter's.
const DEADLY: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// Standard input in raw mode; as it was before, once dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode, if it is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mut attributes = tcgetattr(&stdin)?;
        if COOKED.set(attributes.clone()).is_ok() {
            guard_ways_out()?;
        }
        attributes.make_raw();
        RAW.store(true, Ordering::SeqCst);
        tcsetattr(&stdin, OptionalActions::Now, &attributes)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, if it is raw. Safe to call in a signal handler: an atomic
/// swap, a load and one ioctl.
pub fn restore() {
    if let Some(cooked) = COOKED.get()
        && RAW.swap(false, Ordering::SeqCst)
    {
        // SAFETY: file descriptor 0 is never closed by this process.
        let stdin = unsafe { rustix::fd::BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
        // On the way out; nobody is left to tell.
        let _ = tcsetattr(stdin, OptionalActions::Now, cooked);
    }
}

fn guard_ways_out() -> io::Result<()> {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
    for signal in DEADLY {
        register_signal_handler(signal, on_deadly_signal)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// Restores the terminal and lets the signal do what it would have done.
extern "C" fn on_deadly_signal(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore();
    // SAFETY: signal(2) and raise(3) are async-signal-safe; the signal is one that has a default.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
    // SAFETY: as above. The signal is blocked until the handler returns, and then ends us.
    unsafe {
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_what_was_never_raw_does_nothing() {
        restore();
        assert!(!RAW.load(Ordering::SeqCst));
    }
}
