// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes to descriptors whose other end belongs to the outside.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mm::units::SaturatingInto;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How long the last words of a process wait for room.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Maximum size of an atomic write to a pipe (PIPE_BUF).
const PIPE_BUF: usize = 4096;

/// A descriptor to write to, blocking or not: waits for room on the caller's thread.
///
/// The error of a pipe without a reader is `BrokenPipe` only where what was written before has been
/// read: the next reader finds the rest in it.
pub struct Descriptor(pub OwnedFd);

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(Errno::AGAIN) => wait_for_room(&self.0, None)?,
                Err(Errno::PIPE) if rustix::io::ioctl_fionread(&self.0).is_ok_and(|n| n > 0) => {
                    return Err(io::ErrorKind::NotConnected.into());
                }
                other => return Ok(other?),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until `fd` is writable, for at most `limit`; returns whether it is.
fn wait_for_room(fd: &impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(|limit| rustix::event::Timespec {
        tv_sec: limit.as_secs().saturating_i64(),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    match poll(&mut fds, limit.as_ref()) {
        Ok(0) => Ok(false),
        Ok(_) => Ok(true),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Prints `line` on standard error, unless that blocks for 0.2 s: for final messages of a process
/// without a ring.
pub fn say(line: &str) {
    let stderr = io::stderr();
    if wait_for_room(&stderr, Some(LAST_WORDS)).unwrap_or(false) {
        // A pipe that polls as writable accepts PIPE_BUF bytes at once.
        let line = &line.as_bytes()[..line.len().min(PIPE_BUF)];
        // There is no other place to report to.
        let _ = rustix::io::write(&stderr, line);
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::host::ring::Ring;

    #[test]
    fn a_pipe_is_broken_once_it_is_empty() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut descriptor = Descriptor(writer);
        assert_eq!(descriptor.write(b"half").unwrap(), 4);
        drop(reader);
        assert_eq!(descriptor.write(b"x").unwrap_err().kind(), io::ErrorKind::NotConnected);

        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut descriptor = Descriptor(writer);
        assert_eq!(descriptor.write(b"half").unwrap(), 4);
        rustix::io::read(&reader, &mut [0; 10]).unwrap();
        drop(reader);
        assert_eq!(descriptor.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_long_record_through_a_full_fifo_stays_whole() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let ring = Ring::new("test", 1 << 20, Box::new(Descriptor(writer)));
        let lines: Vec<String> =
            (0..40).map(|n| format!("{}\n", n.to_string().repeat(9000))).collect();
        for line in &lines {
            assert!(ring.push(line.as_bytes()));
        }
        let expected: Vec<u8> = lines.concat().into_bytes();
        let mut seen = Vec::new();
        let mut buffer = [0; 1000];
        while seen.len() < expected.len() {
            let mut fds = [PollFd::new(&reader, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let length = rustix::io::read(&reader, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..length]);
        }
        assert!(seen == expected);
    }
}
