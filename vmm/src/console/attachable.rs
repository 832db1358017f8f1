// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A console that one can attach to and type into at any time: a pseudo-terminal, or a socket with
//! several clients, who all see the same output and may all type.
//!
//! A new client first gets the last output. A client that does not read loses output, and a notice
//! reports how much.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use devices::legacy::SerialPort;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::backlog::Backlog;
use super::feed::Feed;
use crate::event_loop::Subscriber;
use crate::host::sockets::Listener;
use crate::host::terminal::Pty;

/// Limit on clients of a socket; further ones are rejected.
const MAX_CLIENTS: usize = 8;
/// Bytes of output that a new client is shown.
const SCROLLBACK: usize = 16 << 10;
/// Bytes of output that may wait for one client.
const PENDING: usize = 64 << 10;

/// A console to attach to, before there is a serial port.
pub struct Attachable {
    backlog: Backlog,
    peers: Vec<Peer>,
    listener: Option<Listener>,
    /// Keeps the pseudo-terminal alive while nothing has it open.
    _other_end: Option<OwnedFd>,
}

impl Attachable {
    pub(super) fn on_pty(pty: Pty, backlog: Backlog) -> Self {
        let peers = vec![Peer::new(pty.ours)];
        Self { backlog, peers, listener: None, _other_end: Some(pty.theirs) }
    }

    pub(super) fn on_socket(listener: Listener, backlog: Backlog) -> Self {
        Self { backlog, peers: Vec::new(), listener: Some(listener), _other_end: None }
    }

    pub(super) fn connect(self, serial: Arc<SerialPort>) -> Subscriber {
        Box::new(Attached { console: self, feed: Feed::new(serial), scrollback: VecDeque::new() })
    }
}

/// The subscriber.
struct Attached {
    console: Attachable,
    feed: Feed,
    scrollback: VecDeque<u8>,
}

/// A client, or the pseudo-terminal.
struct Peer {
    fd: OwnedFd,
    /// Output that it has not read yet.
    pending: VecDeque<u8>,
    lost: u64,
    watched: EventSet,
    gone: bool,
}

impl Peer {
    fn new(fd: OwnedFd) -> Self {
        let pending = VecDeque::new();
        Self { fd, pending, lost: 0, watched: EventSet::empty(), gone: false }
    }

    /// Adds output; returns how many bytes of it are lost.
    fn show(&mut self, bytes: &VecDeque<u8>) -> u64 {
        if self.lost > 0 && self.pending.len() < PENDING / 2 {
            let notice = format!("\r\n[{} bytes of output lost]\r\n", self.lost);
            self.pending.extend(notice.as_bytes());
            self.lost = 0;
        }
        let taken = bytes.len().min(PENDING.saturating_sub(self.pending.len()));
        // After a loss all further bytes are lost too, so that the notice appears in the right
        // place.
        let taken = if self.lost > 0 { 0 } else { taken };
        self.pending.extend(bytes.range(..taken));
        let lost = (bytes.len() - taken) as u64;
        self.lost += lost;
        lost
    }

    /// Sends as much as the socket accepts.
    fn send(&mut self) {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, self.pending.as_slices().0) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.gone = true,
            }
        }
    }

    /// Reads a chunk of input.
    fn receive(&mut self, feed: &mut Feed) {
        let mut bytes = [0; Feed::CHUNK];
        match rustix::io::read(&self.fd, &mut bytes) {
            Ok(0) => self.gone = true,
            Ok(count) => feed.add(&bytes[..count]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.gone = true,
        }
    }
}

impl Attached {
    fn watch_first(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::new(self.feed.drained(), EventSet::IN))?;
        ops.add(Events::new(self.console.backlog.event(), EventSet::IN))?;
        if let Some(listener) = &self.console.listener {
            ops.add(Events::new(&listener.socket, EventSet::IN))?;
        }
        for peer in &mut self.console.peers {
            ops.add(Events::with_data(&peer.fd, 0, EventSet::IN))?;
            peer.watched = EventSet::IN;
        }
        Ok(())
    }

    fn show_output(&mut self) {
        let (mut bytes, lost) = self.console.backlog.take();
        if lost > 0 {
            bytes.extend(format!("\r\n[{lost} bytes of output lost]\r\n").as_bytes());
        }
        let lost = self.console.peers.iter_mut().map(|peer| peer.show(&bytes)).sum();
        self.console.backlog.note_lost(lost);
        self.scrollback.extend(&bytes);
        let surplus = self.scrollback.len().saturating_sub(SCROLLBACK);
        self.scrollback.drain(..surplus);
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let Some(listener) = &self.console.listener else { return };
        while let Ok((stream, _)) = listener.socket.accept() {
            if self.console.peers.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut peer = Peer::new(stream.into());
            peer.show(&self.scrollback);
            if ops.add(Events::new(&peer.fd, EventSet::IN)).is_ok() {
                peer.watched = EventSet::IN;
                self.console.peers.push(peer);
            }
        }
    }

    fn serve_peer(&mut self, fd: RawFd, events: EventSet) {
        let Some(peer) = self.console.peers.iter_mut().find(|peer| peer.fd.as_raw_fd() == fd)
        else {
            return;
        };
        let ends = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if events.contains(EventSet::IN) || ends {
            peer.receive(&mut self.feed);
        }
        // The last that it typed, within limits.
        for _ in 0..Feed::CHUNK {
            if !ends || peer.gone {
                break;
            }
            peer.receive(&mut self.feed);
        }
    }

    /// Sends pending output, drops disconnected clients, and updates the events of the others.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        let readable = self.feed.is_empty();
        for peer in &mut self.console.peers {
            peer.send();
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, readable);
            wanted.set(EventSet::OUT, !peer.pending.is_empty());
            if peer.gone {
                // Fails only if it is not watched.
                let _ = ops.remove(Events::new(&peer.fd, peer.watched));
            } else if wanted != peer.watched {
                peer.gone = ops.modify(Events::new(&peer.fd, wanted)).is_err();
                peer.watched = wanted;
            }
        }
        // The pseudo-terminal stays open: this process also holds its other end.
        if self.console.listener.is_some() {
            self.console.peers.retain(|peer| !peer.gone);
        }
    }
}

impl MutEventSubscriber for Attached {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = self.watch_first(ops) {
            tracing::error!(%error, "cannot watch the console: console input is disabled");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd: RawFd = events.fd();
        let listener = self.console.listener.as_ref().map(|listener| listener.socket.as_raw_fd());
        if fd == self.feed.drained().as_raw_fd() {
            // Only wakes us; the count means nothing.
            let _ = self.feed.drained().read();
        } else if fd == self.console.backlog.event().as_raw_fd() {
            self.show_output();
        } else if Some(fd) == listener {
            self.accept(ops);
        } else {
            self.serve_peer(fd, events.event_set());
        }
        self.feed.pump();
        self.settle(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_loses_output_and_is_told() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut peer = Peer::new(ours.into());
        let line: VecDeque<u8> = [b'x'; 1000].into();
        for _ in 0..2000 {
            peer.show(&line);
            peer.send();
        }
        assert!(peer.pending.len() <= PENDING && peer.lost > 0);
        // It reads again: the notice appears where output was lost.
        theirs.set_nonblocking(true).unwrap();
        let mut seen = Vec::new();
        for _ in 0..10 {
            let mut buffer = vec![0; 1 << 20];
            if let Ok(count) = std::io::Read::read(&mut &theirs, &mut buffer) {
                seen.extend_from_slice(&buffer[..count]);
            }
            peer.send();
        }
        peer.show(&VecDeque::from(*b"end"));
        peer.send();
        let mut buffer = vec![0; 1 << 20];
        let count = std::io::Read::read(&mut &theirs, &mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8(seen).unwrap();
        assert!(text.ends_with(" bytes of output lost]\r\nend"), "{}", &text[text.len() - 60..]);
        assert!(!peer.gone);
    }
}
