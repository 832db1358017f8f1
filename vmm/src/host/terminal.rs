// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal: in raw mode while a guest uses it, and restored on every exit path.
//!
//! ```text
//!  enter() in the foreground ─▶ raw ─▶ restore(): as it was
//!          in the background ─▶ wanted ─▶ reenter() after SIGCONT in the foreground ─▶ raw
//! ```
//!
//! A terminal belongs to the process group in its foreground (termios(3), setpgid(2)). From the
//! background it is neither made raw nor restored: the shell, or another program, has it then.
//! SIGTTOU and SIGTTIN are blocked (`signals`), so that nothing here can stop the process.
//!
//! Ways out: a normal end and an early return (`RawTerminal` is dropped), a panic (a hook, since a
//! release build aborts), a deadly signal (a handler). Only SIGKILL leaves a raw terminal behind.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::fd::BorrowedFd;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

/// How the terminal was when it was last made raw; null before. Never freed: a signal handler may
/// be reading it.
static COOKED: AtomicPtr<Termios> = AtomicPtr::new(ptr::null_mut());
/// Whether it is raw now.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether a console needs raw mode.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Written when the terminal may have become readable again.
static BACK: OnceLock<EventFd> = OnceLock::new();

/// Signals that end a process because of its own error, or a seccomp filter.
const DEADLY: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// A pseudo-terminal in raw mode: the other end is a guest, not a line editor.
#[derive(Debug)]
pub struct Pty {
    /// The end that the monitor reads and writes, without blocking.
    pub ours: OwnedFd,
    /// The other end, kept open so that the console survives when users detach.
    pub theirs: OwnedFd,
    /// What to attach to.
    pub path: PathBuf,
}

impl Pty {
    /// Opens a new one.
    ///
    /// # Errors
    ///
    /// Where the host has none left, or no /dev/ptmx and /dev/pts.
    pub fn open() -> io::Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(&*name, flags, Mode::empty())?;
        let mut attributes = tcgetattr(&theirs)?;
        attributes.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &attributes)?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        Ok(Self { ours, theirs, path: PathBuf::from(OsString::from_vec(name.into_bytes())) })
    }
}

/// Standard input as a console; as it was before, once dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode, if it is a terminal; later, if that is in the
    /// background now.
    ///
    /// # Errors
    ///
    /// Where the terminal refuses, or no descriptor is left.
    pub fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        if BACK.get().is_none() {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            // Only this thread sets it.
            let _ = BACK.set(event);
            guard_ways_out()?;
        }
        WANTED.store(true, Ordering::SeqCst);
        let raw = Self(());
        if in_foreground() {
            make_raw()?;
        } else {
            tracing::warn!(
                "standard input is a terminal in the background: the console reads no input until \
                 the monitor is in the foreground"
            );
        }
        Ok(Some(raw))
    }

    /// Readable after the process was continued: reading standard input, which fails in the
    /// background, may work again.
    pub fn back(&self) -> Option<&'static EventFd> {
        BACK.get()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::SeqCst);
        restore();
    }
}

/// Whether this process may change the terminal at standard input. A terminal that is not the
/// controlling one has no foreground group.
fn in_foreground() -> bool {
    match tcgetpgrp(stdin()) {
        Ok(group) => group == getpgrp(),
        Err(error) => error == rustix::io::Errno::NOTTY,
    }
}

/// Standard input, without the buffer of [`std::io::stdin`].
pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: file descriptor 0 is never closed by this process.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

fn make_raw() -> io::Result<()> {
    let mut attributes = tcgetattr(stdin())?;
    // A SIGCONT also comes to who was never stopped, or stopped by who leaves the terminal alone:
    // then what is there now is what this process has set.
    let ours = RAW.load(Ordering::SeqCst) && !attributes.local_modes.contains(LocalModes::ICANON);
    if !ours {
        // Some bytes for each time that the shell hands the terminal over.
        COOKED.store(Box::into_raw(Box::new(attributes.clone())), Ordering::SeqCst);
    }
    attributes.make_raw();
    RAW.store(true, Ordering::SeqCst);
    Ok(tcsetattr(stdin(), OptionalActions::Now, &attributes)?)
}

/// After SIGCONT: sets the terminal to raw mode again if a console needs it and this process is in
/// the foreground.
pub fn reenter() {
    if !WANTED.load(Ordering::SeqCst) || !in_foreground() {
        return;
    }
    if let Err(error) = make_raw() {
        tracing::warn!(%error, "cannot set the terminal to raw mode again");
    }
    if let Some(back) = BACK.get() {
        // Fails only when the counter is full: then it is readable.
        let _ = back.write(1);
    }
}

/// Restores the terminal if it is raw and this process is in the foreground. Safe to call in a
/// signal handler: atomic operations, getpgrp(2) and two ioctls.
pub fn restore() {
    let cooked = COOKED.load(Ordering::SeqCst);
    if cooked.is_null() || !RAW.swap(false, Ordering::SeqCst) || !in_foreground() {
        return;
    }
    // SAFETY: not null, so it came from `Box::into_raw` in `make_raw`; it is never freed and never
    // written again.
    let cooked = unsafe { &*cooked };
    // The process is ending: a failure cannot be reported.
    let _ = tcsetattr(stdin(), OptionalActions::Now, cooked);
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

/// Restores the terminal and then performs the signal's default action.
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
