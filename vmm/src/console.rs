// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of the serial console: where the guest's output goes, and whence its input
//! comes.
//!
//! On a terminal in raw mode every key goes to the guest, so one sequence must end the monitor:
//! Ctrl-A x, as elsewhere. Ctrl-A twice sends a Ctrl-A.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::legacy::SerialPort;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::config::ConsoleConfig;
use crate::exit::{ExitReason, ExitSignal};
use crate::host::files::LimitedFile;
use crate::host::ring::{Descriptor, Ring};
use crate::host::terminal::RawTerminal;

const CTRL_A: u8 = 1;

/// Bytes of output that may wait for their reader.
const CAPACITY: usize = 64 << 10;
/// Most bytes of the console's file, and of the one before it.
const FILE_LIMIT: u64 = 64 << 20;

/// Opens what the guest's output goes to. Writing to it never waits: a reader that is slow costs
/// output, not the vCPU's time.
///
/// # Errors
///
/// Where the file cannot be opened.
pub fn output(config: &ConsoleConfig) -> io::Result<Box<dyn Write + Send>> {
    let sink: Box<dyn Write + Send> = match config {
        // A descriptor of its own, past the buffer and the lock of the standard library.
        ConsoleConfig::Tty => Box::new(Descriptor(rustix::io::dup(io::stdout())?)),
        ConsoleConfig::File(path) => Box::new(LimitedFile::open(path, FILE_LIMIT)?),
        ConsoleConfig::Null => return Ok(Box::new(io::sink())),
    };
    Ok(Box::new(Ring::new("console", CAPACITY, sink)))
}

/// Feeds standard input to the serial port; lives in the event loop.
pub struct Input {
    serial: Arc<SerialPort>,
    exit: Arc<ExitSignal>,
    /// Held for its drop.
    raw: Option<RawTerminal>,
    escape: Escape,
    /// Read, but not yet taken by the guest.
    waiting: Vec<u8>,
    watching: bool,
}

impl Input {
    /// At most so many bytes wait for the guest.
    const BUFFER: usize = 256;

    /// Input for `serial`; a terminal goes into raw mode now.
    pub fn new(serial: Arc<SerialPort>, exit: Arc<ExitSignal>) -> io::Result<Self> {
        let raw = RawTerminal::enter()?;
        Ok(Self {
            serial,
            exit,
            raw,
            escape: Escape::default(),
            waiting: Vec::new(),
            watching: false,
        })
    }

    fn watch(&mut self, ops: &mut EventOps<'_>, on: bool) {
        if self.watching == on {
            return;
        }
        let events = Events::new_raw(libc::STDIN_FILENO, EventSet::IN);
        let done = if on { ops.add(events) } else { ops.remove(events) };
        // What epoll cannot watch (a file, /dev/null) is no source of input.
        if done.is_ok() {
            self.watching = on;
        }
    }

    /// Reads what there is; false at the end of input.
    fn read(&mut self) -> bool {
        let mut bytes = [0; Self::BUFFER];
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                let bytes = &bytes[..count];
                if self.raw.is_none() {
                    self.waiting.extend_from_slice(bytes);
                } else if self.escape.filter(bytes, &mut self.waiting) {
                    self.exit.raise(ExitReason::Stopped("Ctrl-A x".into()));
                }
                true
            }
            Err(error) => matches!(error, rustix::io::Errno::INTR | rustix::io::Errno::AGAIN),
        }
    }

    /// Gives the guest what it has room for.
    fn feed(&mut self) {
        let count = self.serial.room().min(self.waiting.len());
        match self.serial.input(&self.waiting[..count]) {
            Ok(taken) => drop(self.waiting.drain(..taken)),
            // In loop-back mode the port is deaf.
            Err(_) => self.waiting.clear(),
        }
    }
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.serial.drained(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch the serial port: no console input");
            return;
        }
        self.watch(ops, true);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd: RawFd = events.fd();
        if fd == self.serial.drained().as_raw_fd() {
            // Only wakes us; the count means nothing.
            let _ = self.serial.drained().read();
        } else if !self.read() {
            self.watch(ops, false);
            return;
        }
        self.feed();
        // Nothing is read that there is no room for.
        self.watch(ops, self.waiting.is_empty());
    }
}

/// Looks for Ctrl-A in raw input.
#[derive(Debug, Default)]
struct Escape {
    seen: bool,
}

impl Escape {
    /// Appends what of `bytes` is for the guest to `out`; true if the monitor is to end.
    fn filter(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in bytes {
            match (std::mem::take(&mut self.seen), byte) {
                (true, b'x') => return true,
                (true, CTRL_A) => out.push(CTRL_A),
                (true, _) => out.extend([CTRL_A, byte]),
                (false, CTRL_A) => self.seen = true,
                (false, _) => out.push(byte),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_ends_and_passes_the_rest() {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        assert!(!escape.filter(b"ls\x01", &mut out));
        assert!(!escape.filter(b"\x01\x01yx", &mut out));
        assert_eq!(out, b"ls\x01\x01yx");
        assert!(!escape.filter(b"\x01", &mut out));
        assert!(escape.filter(b"x", &mut out));
    }

    #[test]
    fn file_output_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        for _ in 0..2 {
            output(&ConsoleConfig::File(path.clone())).unwrap().write_all(b"x").unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"xx");
        assert!(output(&ConsoleConfig::File(dir.path().into())).is_err());
    }
}
