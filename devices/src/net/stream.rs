// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames over a stream socket, as QEMU's `-netdev stream` and passt(1) speak: four bytes of length,
//! most significant first, then the Ethernet frame without a virtio header.
//!
//! The other side is a process of the host's, which may be slow or end: sending never blocks, what
//! waits in both directions is bounded, and an invalid frame ends the stream, since the start of
//! the next one is unknown.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags};

use super::protocol::{HEADER_LEN, MAX_FRAME};

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// Longest frame.
const LONGEST: usize = MAX_FRAME - HEADER_LEN;
/// Shortest frame: its two addresses and its type.
const SHORTEST: usize = 14;
/// Bytes that are received in one call: some frames, and at least a whole one.
const RECEIVED: usize = 2 * (PREFIX + LONGEST);
/// Bytes that wait to be sent, beyond which no frame is taken.
const UNSENT: usize = 128 << 10;

/// Why a stream has no more frames.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The other side has closed it.
    #[error("the other side has closed the stream")]
    Closed,
    /// The other side does not speak this protocol.
    #[error("a frame of {0} bytes was announced ({SHORTEST} to {LONGEST} are possible)")]
    Length(u32),
    /// The socket has failed.
    #[error("{0}")]
    Failed(io::Error),
}

/// One end of a stream of frames.
#[derive(Debug)]
pub struct FrameStream {
    fd: OwnedFd,
    /// What was received and not yet consumed lies at `from..to`.
    received: Vec<u8>,
    from: usize,
    to: usize,
    /// What the socket has not taken yet lies from `sent` on.
    unsent: Vec<u8>,
    sent: usize,
    /// Set when the stream has ended; taken by [`FrameStream::take_end`].
    end: Option<StreamEnd>,
    ended: bool,
}

impl FrameStream {
    /// A stream over `fd`, a connected stream socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            received: Vec::new(),
            from: 0,
            to: 0,
            unsent: Vec::new(),
            sent: 0,
            end: None,
            ended: false,
        }
    }

    /// Whether no frame comes or goes any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Why it has ended: once.
    pub(super) fn take_end(&mut self) -> Option<StreamEnd> {
        self.end.take()
    }

    /// The next frame, which stays the next until it is [consumed](Self::consume); `None` if it has
    /// not arrived yet.
    pub(super) fn peek(&mut self) -> Option<&[u8]> {
        loop {
            if let Some(len) = self.next_len()? {
                let start = self.from + PREFIX;
                return self.received.get(start..start + len);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Drops the frame that was peeked at.
    pub(super) fn consume(&mut self) {
        if let Some(Some(len)) = self.next_len() {
            self.from += PREFIX + len;
        }
    }

    /// Length of the next frame, if all of it is here; the outer `None` if the stream has ended.
    fn next_len(&mut self) -> Option<Option<usize>> {
        if self.ended {
            return None;
        }
        let Some(prefix) = self.received[self.from..self.to].first_chunk::<PREFIX>() else {
            return Some(None);
        };
        let announced = u32::from_be_bytes(*prefix);
        match usize::try_from(announced) {
            Ok(len) if (SHORTEST..=LONGEST).contains(&len) => {
                Some((self.to - self.from >= PREFIX + len).then_some(len))
            }
            _ => {
                self.end_with(StreamEnd::Length(announced));
                None
            }
        }
    }

    /// Receives available data; false without any.
    fn fill(&mut self) -> bool {
        self.received.resize(RECEIVED, 0);
        // What is there is less than a frame, so there is room behind it.
        self.received.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        let got = rustix::net::recv(&self.fd, &mut self.received[self.to..], RecvFlags::DONTWAIT);
        match got.map_err(io::Error::from) {
            Ok((_, 0)) => self.end_with(StreamEnd::Closed),
            Ok((_, len)) => {
                self.to += len;
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.fill(),
            Err(error) => self.end_with(StreamEnd::Failed(error)),
        }
        false
    }

    /// Whether a frame of any length can be sent now.
    pub(super) fn has_room(&mut self) -> bool {
        if self.unsent.len() - self.sent >= UNSENT {
            self.flush();
        }
        self.unsent.len() - self.sent < UNSENT
    }

    /// Puts `frame` behind what is to be sent; false if it is lost, since the stream has ended.
    pub(super) fn send(&mut self, frame: &[u8]) -> bool {
        let Ok(len) = u32::try_from(frame.len()) else { return false };
        if self.ended {
            return false;
        }
        self.unsent.extend_from_slice(&len.to_be_bytes());
        self.unsent.extend_from_slice(frame);
        true
    }

    /// Hands over to the socket what it takes; the rest waits until it is writable.
    pub(super) fn flush(&mut self) {
        while !self.ended && self.sent < self.unsent.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let taken = rustix::net::send(&self.fd, &self.unsent[self.sent..], flags);
            match taken.map_err(io::Error::from) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.end_with(StreamEnd::Closed);
                }
                Err(error) => self.end_with(StreamEnd::Failed(error)),
            }
        }
        self.unsent.drain(..self.sent);
        self.sent = 0;
    }

    fn end_with(&mut self, end: StreamEnd) {
        if !self.ended {
            self.end = Some(end);
        }
        self.ended = true;
        (self.from, self.to, self.sent) = (0, 0, 0);
        self.received = Vec::new();
        self.unsent = Vec::new();
    }
}

impl AsFd for FrameStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (FrameStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (FrameStream::new(ours.into()), theirs)
    }

    fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
        let frame = |frame: &Vec<u8>| {
            [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
        };
        frames.iter().flat_map(frame).collect()
    }

    proptest! {
        /// Frames come out as they went in, however the stream was cut.
        #[test]
        fn frames_survive_any_cut(
            lengths in prop::collection::vec(SHORTEST..5000, 1..20),
            cuts in prop::collection::vec(1usize..9000, 1..40),
        ) {
            let frames: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect();
            let bytes = encoded(&frames);
            let (mut stream, mut peer) = pair();
            let mut got = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                peer.write_all(now).unwrap();
                while let Some(frame) = stream.peek() {
                    got.push(frame.to_vec());
                    stream.consume();
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, frames);
        }
    }

    #[test]
    fn a_peer_that_does_not_read_holds_a_bounded_amount_back_and_loses_nothing() {
        let (mut stream, mut peer) = pair();
        let frame = vec![7; 9000];
        let mut sent = Vec::new();
        while stream.has_room() {
            assert!(stream.send(&frame));
            sent.push(frame.clone());
        }
        assert!(stream.unsent.len() < UNSENT + PREFIX + LONGEST);
        let wanted = encoded(&sent);
        let mut got = vec![0; wanted.len()];
        let mut at = 0;
        while at < got.len() {
            at += peer.read(&mut got[at..]).unwrap();
            stream.flush();
        }
        assert!(got == wanted);
        assert!(stream.has_room());
    }

    #[test]
    fn ends_once_with_a_reason_when_the_peer_closes_or_talks_nonsense() {
        let (mut stream, peer) = pair();
        drop(peer);
        assert!(stream.peek().is_none());
        assert!(matches!(stream.take_end(), Some(StreamEnd::Closed)));
        assert!(stream.has_ended() && stream.take_end().is_none());
        assert!(!stream.send(&[0; 60]));

        for announced in [0, 13, 65_551, u32::MAX] {
            let (mut stream, mut peer) = pair();
            peer.write_all(&u32::to_be_bytes(announced)).unwrap();
            assert!(stream.peek().is_none());
            let end = stream.take_end();
            assert!(matches!(end, Some(StreamEnd::Length(n)) if n == announced), "{end:?}");
        }

        let (mut stream, peer) = pair();
        drop(peer);
        stream.send(&[0; 60]);
        stream.flush();
        assert!(matches!(stream.take_end(), Some(StreamEnd::Closed)));
    }
}
