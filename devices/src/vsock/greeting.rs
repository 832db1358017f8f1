// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host program that has connected but not yet named a port of the guest.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// Longest line, with its end: a word and ten digits, and some room for spaces.
const MAX_LINE: usize = 32;

/// Result of a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GreetingProgress {
    /// There is no whole line yet.
    Waits,
    /// The program requests this port.
    Port(u32),
    /// It sent something else, or closed the socket.
    Nonsense,
}

/// Reads the line of `stream`, and no byte behind it: those belong to the guest.
pub(super) fn advance(stream: &UnixStream) -> GreetingProgress {
    let mut line = [0; MAX_LINE];
    let seen = loop {
        match recv(stream, &mut line[..], RecvFlags::PEEK) {
            Ok((0, _)) => return GreetingProgress::Nonsense,
            Ok((len, _)) => break len,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return GreetingProgress::Waits,
            Err(_) => return GreetingProgress::Nonsense,
        }
    };
    let Some(end) = line[..seen].iter().position(|byte| *byte == b'\n') else {
        return if seen == MAX_LINE { GreetingProgress::Nonsense } else { GreetingProgress::Waits };
    };
    let Some(port) = parse(&line[..end]) else { return GreetingProgress::Nonsense };
    let mut rest = &mut line[..=end];
    while !rest.is_empty() {
        match io::Read::read(&mut &*stream, rest) {
            // It was there a moment ago.
            Ok(0) => return GreetingProgress::Nonsense,
            Ok(len) => rest = &mut rest[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return GreetingProgress::Nonsense,
        }
    }
    GreetingProgress::Port(port)
}

/// `CONNECT PORT`, the word in any case.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let connects = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?.parse().ok()?;
    (connects && words.next().is_none()).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn only_one_form_is_a_greeting() {
        for (line, port) in [
            ("CONNECT 52", Some(52)),
            ("connect 4294967295", Some(u32::MAX)),
            ("CONNECT  7 ", Some(7)),
            ("CONNECT 52\r", Some(52)),
            ("CONNECT", None),
            ("CONNECT x", None),
            ("CONNECT -1", None),
            ("CONNECT 4294967296", None),
            ("CONNECT 1 2", None),
            ("GET /", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line:?}");
        }
    }

    #[test]
    fn a_line_may_come_in_parts_and_what_follows_stays() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(advance(&ours), GreetingProgress::Waits);
        program.write_all(b"CONN").unwrap();
        assert_eq!(advance(&ours), GreetingProgress::Waits);
        program.write_all(b"ECT 12\nfirst bytes").unwrap();
        assert_eq!(advance(&ours), GreetingProgress::Port(12));
        let mut rest = [0; 11];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"first bytes");
    }

    #[test]
    fn lines_without_end_and_programs_that_go_are_dropped() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        program.write_all(&[b' '; 40]).unwrap();
        assert_eq!(advance(&ours), GreetingProgress::Nonsense);
        let (program, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        drop(program);
        assert_eq!(advance(&ours), GreetingProgress::Nonsense);
    }
}
