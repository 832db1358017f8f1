// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard input as the console's input: a terminal in raw mode, a pipe, or a file.
//!
//! On a terminal in raw mode every key goes to the guest, so one sequence must stop the monitor:
//! Ctrl-A x, as in QEMU. Ctrl-A twice sends a Ctrl-A.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use devices::legacy::SerialPort;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::feed::Feed;
use crate::exit::{ExitReason, ExitSignal};
use crate::host::input::SharedInput;
use crate::host::terminal::{RawTerminal, stdin};

const CTRL_A: u8 = 1;

/// Feeds standard input to the serial port; lives in the event loop.
pub(super) struct TtyInput {
    feed: Feed,
    stdin: SharedInput,
    exit: Arc<ExitSignal>,
    raw: Option<RawTerminal>,
    escape: Escape,
    source: Source,
}

/// The current kind of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In epoll's set.
    Watched,
    /// Out of it: the guest has no room.
    Unwatched,
    /// A regular file, which epoll does not support: read when the guest has room.
    File,
    /// A terminal that another process group has: nothing until SIGCONT.
    Background,
    /// At its end.
    Ended,
}

impl TtyInput {
    /// Input for `serial`; sets a terminal to raw mode.
    pub(super) fn new(serial: Arc<SerialPort>, exit: Arc<ExitSignal>) -> io::Result<Self> {
        let raw = RawTerminal::enter()?;
        let (feed, escape) = (Feed::new(serial), Escape::default());
        let stdin = SharedInput::new(stdin());
        Ok(Self { feed, stdin, exit, raw, escape, source: Source::Unwatched })
    }

    fn events(&self) -> Events {
        Events::new_raw(self.stdin.as_fd().as_raw_fd(), EventSet::IN)
    }

    /// Watches standard input while the guest has room, and not otherwise.
    fn watch(&mut self, ops: &mut EventOps<'_>) {
        let events = self.events();
        match (self.source, self.feed.is_empty()) {
            (Source::Unwatched, true) => {
                self.source = match ops.add(events) {
                    Ok(()) => Source::Watched,
                    // Files, and /dev/null, are always readable.
                    Err(_) => Source::File,
                };
            }
            (Source::Watched, false) if ops.remove(events).is_ok() => {
                self.source = Source::Unwatched;
            }
            _ => {}
        }
    }

    fn leave(&mut self, next: Source, ops: &mut EventOps<'_>) {
        if self.source == Source::Watched {
            // Fails only if it is not watched.
            let _ = ops.remove(self.events());
        }
        self.source = next;
    }

    /// Reads a chunk; false if there was none.
    fn read(&mut self, ops: &mut EventOps<'_>) -> bool {
        let mut bytes = [0; Feed::CHUNK];
        match self.stdin.read(&mut bytes) {
            Ok(0) => self.leave(Source::Ended, ops),
            Ok(count) => {
                self.take(&bytes[..count]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // SIGTTIN is blocked, so a read from the background fails.
            Err(error) if error.raw_os_error() == Some(libc::EIO) && self.raw.is_some() => {
                self.leave(Source::Background, ops);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read standard input: console input is disabled");
                self.leave(Source::Ended, ops);
            }
        }
        false
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.raw.is_none() {
            self.feed.add(bytes);
        } else if self.escape.filter(bytes, self.feed.waiting()) {
            self.exit.raise(ExitReason::Stopped("Ctrl-A x".into()));
        }
    }

    /// Feeds the guest from a file until its buffer is full or the file ends.
    fn feed_from_file(&mut self, ops: &mut EventOps<'_>) {
        while self.source == Source::File && self.feed.is_empty() && self.read(ops) {
            self.feed.pump();
        }
    }
}

impl MutEventSubscriber for TtyInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let back = self.raw.as_ref().and_then(RawTerminal::back);
        let watched = ops
            .add(Events::new(self.feed.drained(), EventSet::IN))
            .and_then(|()| back.map_or(Ok(()), |back| ops.add(Events::new(back, EventSet::IN))));
        if let Err(error) = watched {
            tracing::error!(%error, "cannot watch the serial port: console input is disabled");
            return;
        }
        self.watch(ops);
        self.feed_from_file(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd: RawFd = events.fd();
        let back = self.raw.as_ref().and_then(RawTerminal::back);
        if fd == self.stdin.as_fd().as_raw_fd() {
            self.read(ops);
        } else if let Some(back) = back.filter(|back| back.as_raw_fd() == fd) {
            let _ = back.read();
            if self.source == Source::Background {
                self.source = Source::Unwatched;
            }
        } else {
            // Only wakes us; the count means nothing.
            let _ = self.feed.drained().read();
        }
        self.feed.pump();
        self.watch(ops);
        self.feed_from_file(ops);
    }
}

/// Looks for Ctrl-A in raw input.
#[derive(Debug, Default)]
struct Escape {
    seen: bool,
}

impl Escape {
    /// Appends the guest's part of `bytes` to `out`; true if the monitor should stop.
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
}
