// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A console that one can attach to and type into at any time: a pseudo-terminal, or a socket with
//! several clients, who all see the same output and may all type.
//!
//! A new client first gets the last output. A client that does not read loses output, and a notice
//! reports how much. One that closes its sending side (`nc -N`) goes on reading.
//!
//! When all places are taken, a new client gets the place of one that does not read, or of the one
//! that has typed nothing for longest, if that is a minute; else it is told why it is not served.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::SerialPort;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::backlog::Backlog;
use super::feed::Feed;
use crate::event_loop::Subscriber;
use crate::host::sockets::Listener;
use crate::host::terminal::Pty;

/// Limit on clients of a socket.
const MAX_CLIENTS: usize = 8;
/// A client that types nothing keeps its place for this long, even if others wait for one.
const KEEPS_PLACE: Duration = Duration::from_secs(60);
/// Clients accepted at a time, so that a crowd does not keep the loop from other work.
const ACCEPTED_AT_ONCE: usize = 16;
/// Told to a client beyond the limit.
const FULL: &[u8] = b"[the console has no place for one more client]\r\n";
/// News of clients: once for each, so that one that cannot be accepted, without a free descriptor,
/// does not keep the loop busy.
const NEW_CLIENTS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);
/// Bytes of output that a new client is shown.
const SCROLLBACK: usize = 16 << 10;
/// Bytes of output that may wait for one client.
const PENDING: usize = 64 << 10;

/// A console to attach to, before there is a serial port.
pub struct Attachable {
    backlog: Backlog,
    peers: Vec<Peer>,
    listener: Option<Listener>,
    /// Clients may wait to be accepted.
    accepting: bool,
    /// Keeps the pseudo-terminal alive while nothing has it open.
    _other_end: Option<OwnedFd>,
}

impl Attachable {
    pub(super) fn on_pty(pty: Pty, backlog: Backlog) -> Self {
        let peers = vec![Peer::new(pty.ours)];
        Self { backlog, peers, listener: None, accepting: false, _other_end: Some(pty.theirs) }
    }

    pub(super) fn on_socket(listener: Listener, backlog: Backlog) -> Self {
        let listener = Some(listener);
        Self { backlog, peers: Vec::new(), listener, accepting: true, _other_end: None }
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
    /// When it last typed, or else connected.
    typed: Instant,
    /// It types nothing more, and may still read.
    ended: bool,
    gone: bool,
}

impl Peer {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            pending: VecDeque::new(),
            lost: 0,
            watched: EventSet::empty(),
            typed: Instant::now(),
            ended: false,
            gone: false,
        }
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
            Ok(0) => self.ended = true,
            Ok(count) => {
                feed.add(&bytes[..count]);
                self.typed = Instant::now();
            }
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
            ops.add(Events::new(&listener.socket, NEW_CLIENTS))?;
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
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(listener) = &self.console.listener else { return };
            match listener.socket.accept() {
                Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                    self.welcome(stream, ops);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.console.accepting = false;
                }
                // Out of descriptors, for example: tried again at the console's next event.
                Err(error) => {
                    return tracing::warn!(%error, "cannot accept a client of the console");
                }
            }
        }
        if let Some(listener) = &self.console.listener {
            // Another event for those that are left.
            let _ = ops.modify(Events::new(&listener.socket, NEW_CLIENTS));
        }
    }

    /// Gives a new client a place and the last output.
    fn welcome(&mut self, stream: UnixStream, ops: &mut EventOps<'_>) {
        let peers = &mut self.console.peers;
        if peers.len() >= MAX_CLIENTS {
            let Some(at) = least_wanted(peers, Instant::now()) else {
                // A new connection's buffer is empty: it takes all of this.
                let _ = (&stream).write(FULL);
                return;
            };
            let least = peers.swap_remove(at);
            // Fails only if it is not watched.
            let _ = ops.remove(Events::new(&least.fd, least.watched));
        }
        let mut peer = Peer::new(stream.into());
        peer.show(&self.scrollback);
        if ops.add(Events::new(&peer.fd, EventSet::IN)).is_ok() {
            peer.watched = EventSet::IN;
            peers.push(peer);
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
        if !ends {
            return;
        }
        // The last that it typed, within limits: there is another event for the rest.
        for _ in 0..Feed::CHUNK {
            if peer.ended || peer.gone {
                break;
            }
            peer.receive(&mut self.feed);
        }
        peer.gone |= peer.ended;
    }

    /// Sends pending output, drops disconnected clients, and updates the events of the others.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        let readable = self.feed.is_empty();
        for peer in &mut self.console.peers {
            peer.send();
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, readable && !peer.ended);
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
            self.console.accepting = true;
        } else {
            self.serve_peer(fd, events.event_set());
        }
        if self.console.accepting {
            self.accept(ops);
        }
        self.feed.pump();
        self.settle(ops);
    }
}

/// The client that gives its place to a new one, if any does.
fn least_wanted(peers: &[Peer], now: Instant) -> Option<usize> {
    let deaf = peers.iter().position(|peer| peer.lost > 0);
    let silent = || {
        let (at, peer) = peers.iter().enumerate().min_by_key(|(_, peer)| peer.typed)?;
        (now.saturating_duration_since(peer.typed) >= KEEPS_PLACE).then_some(at)
    };
    deaf.or_else(silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_and_then_who_is_silent_for_long_gives_its_place() {
        let mut peers: Vec<Peer> =
            (0..3).map(|_| Peer::new(UnixStream::pair().unwrap().0.into())).collect();
        let later = peers[2].typed + KEEPS_PLACE;
        assert_eq!(least_wanted(&peers, peers[2].typed), None);
        peers[0].typed = later;
        assert_eq!(least_wanted(&peers, later), Some(1));
        peers[2].lost = 1;
        assert_eq!(least_wanted(&peers, peers[2].typed), Some(2));
    }

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
