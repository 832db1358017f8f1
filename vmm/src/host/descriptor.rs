// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes to descriptors whose other end belongs to the outside.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mm::units::SaturatingInto;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::one_line::one_line;

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

/// Prints `ballast: TEXT` on standard error as one line, whatever names from outside are in the
/// text, unless that blocks for 0.2 s: for messages of a process without a ring.
pub fn say(text: &str) {
    say_on(&io::stderr(), text);
}

fn say_on(to: &impl AsFd, text: &str) {
    let line = format!("ballast: {}\n", one_line(text));
    let mut rest = line.as_bytes();
    while !rest.is_empty() && wait_for_room(to, Some(LAST_WORDS)).unwrap_or(false) {
        // A pipe that polls as writable accepts PIPE_BUF bytes at once.
        match rustix::io::write(to, &rest[..rest.len().min(PIPE_BUF)]) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            // There is no other place to report to.
            Err(_) => return,
        }
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
    fn what_is_said_is_one_line_and_waits_for_no_reader() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        say_on(&writer, "cannot open a\n\u{1b}[2Jb");
        let mut seen = vec![0; 1 << 20];
        let count = rustix::io::read(&reader, &mut seen).unwrap();
        assert_eq!(&seen[..count], b"ballast: cannot open a\\n\\u{1b}[2Jb\n");
        // More than the pipe holds: the rest is not waited for.
        say_on(&writer, &"x".repeat(1 << 20));
        assert!(rustix::io::read(&reader, &mut seen).unwrap() > PIPE_BUF);
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
