// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Handles packets from the guest and events of the host's sockets, and selects the next packet to
//! the guest.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::buffers::Buffers;
use super::connection::{Fate, VsockConnection};
use super::credit::Credit;
use super::greeting::{self, GreetingProgress as Greeting};
use super::handle::VsockCounters;
use super::host_sockets::{HostSockets, SocketNews};
use super::protocol::{HOST_CID, Op, PacketHeader, TYPE_STREAM};
use super::stream_table::{Packet, Ports, SocketOwner, StreamTable};
use super::{MAX_BUFFERED, VsockConfig};
use crate::virtio::{Deadline, IoVecs, Progress, QueueError};

/// All streams of a guest.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    sockets: HostSockets,
    /// News of sockets; kept for its memory.
    news: Vec<SocketNews>,
    streams: StreamTable,
    /// Data of the guest's packet; kept for its memory.
    data: IoVecs,
    counters: Arc<VsockCounters>,
}

impl Muxer {
    pub(super) fn new(config: VsockConfig, counters: Arc<VsockCounters>) -> io::Result<Self> {
        Ok(Self {
            guest_cid: config.guest_cid,
            sockets: HostSockets::new(config.listener, config.path)?,
            news: Vec::new(),
            streams: StreamTable::new(config.max_connections, Arc::clone(&counters)),
            data: IoVecs::default(),
            counters,
        })
    }

    /// Readable when a socket has news.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.sockets.events()
    }

    /// Connections and greetings at present.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        self.streams.held()
    }

    /// Bytes held for programs of the host.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.streams.buffered()
    }

    /// The driver was reset: all streams end, and later host connections wait. Returned are the
    /// sockets and what they hold, to be closed and freed without the device's lock.
    pub(super) fn reset(&mut self) -> Box<dyn Any + Send> {
        let ended = self.streams.clear();
        self.sockets.look_again();
        ended
    }

    /// Whether there is anything for the guest.
    pub(super) fn has_packets(&self) -> bool {
        self.streams.has_packets()
    }

    /// Whether more packets from the guest can be taken: replies have a limit.
    pub(super) fn can_take(&self) -> bool {
        self.streams.has_room_for_resets()
    }

    // The host's side.

    /// Handles the events of all sockets.
    pub(super) fn poll_host(&mut self, deadline: &mut Deadline) -> Progress {
        let mut news = std::mem::take(&mut self.news);
        let mut more = true;
        let progress = loop {
            // A new client has often sent its line already.
            if self.accept(deadline, &mut more) == Progress::More || deadline.passed() {
                break Progress::More;
            }
            if !more {
                break Progress::Done;
            }
            match self.sockets.poll(&mut news) {
                Ok(left) => more = left,
                Err(_) => {
                    VsockCounters::add(&self.counters.muxer_event_fails, 1);
                    break Progress::Done;
                }
            }
            for news in &news {
                deadline.charge(Deadline::COMMAND);
                self.on_news(*news);
            }
        };
        self.news = news;
        progress
    }

    /// Sets `any` if a program has connected.
    fn accept(&mut self, deadline: &mut Deadline, any: &mut bool) -> Progress {
        loop {
            if deadline.passed() {
                return Progress::More;
            }
            match self.sockets.accept() {
                Ok(Some(stream)) => {
                    *any = true;
                    deadline.charge(Deadline::COMMAND);
                    self.greet(stream);
                }
                Ok(None) => return Progress::Done,
                Err(_) => {
                    VsockCounters::add(&self.counters.muxer_event_fails, 1);
                    return Progress::Done;
                }
            }
        }
    }

    /// A host program has connected. Beyond the limit it finds its connection closed.
    fn greet(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() || !self.streams.make_room() {
            return;
        }
        // Its line may already be there: the first event reports it.
        if let Ok(id) = self.sockets.watch(&stream) {
            self.streams.greet(id, stream);
        }
    }

    fn on_news(&mut self, news: SocketNews) {
        let id = news.id;
        match self.streams.owner(id) {
            Some(SocketOwner::Greeting(stream)) => match greeting::advance(stream) {
                Greeting::Waits => {}
                Greeting::Nonsense => drop(self.streams.end_greeting(id)),
                Greeting::Port(port) => self.streams.connect_guest(id, port),
            },
            Some(SocketOwner::Connection(ports)) => {
                let ports = *ports;
                self.streams.with(ports, |connection| connection.on_socket(&news));
                self.watch_room(ports);
            }
            None => {}
        }
    }

    // The guest's side.

    /// Handles one packet from the guest: `packet` contains `header` and data.
    pub(super) fn take(&mut self, packet: &IoVecs, header: &PacketHeader) {
        let (op, len) = (Op::from(header.op.get()), header.len.get());
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        if header.src_cid.get() != self.guest_cid {
            // Its sender is unknown: no reply is sent (5.10.6.1.2).
            VsockCounters::add(&self.counters.tx_queue_event_fails, 1);
            return;
        }
        let whole = len as usize <= packet.len().saturating_sub(PacketHeader::LEN);
        let sound = header.dst_cid.get() == HOST_CID && header.kind.get() == TYPE_STREAM && whole;
        if !sound {
            return self.streams.refuse(ports, op);
        }
        match self.streams.get_mut(ports) {
            Some(connection) => connection.heard(header.buf_alloc.get(), header.fwd_cnt.get()),
            None if op == Op::Request => return self.connect_host(ports, header),
            None => return self.streams.refuse(ports, op),
        }
        match op {
            Op::Response => {
                let greeting = format!("OK {}\n", ports.host);
                self.streams.with(ports, |connection| connection.accepted(greeting.as_bytes()));
            }
            Op::Rw => self.write(packet, ports, len as usize),
            Op::Shutdown => {
                self.streams.with(ports, |connection| connection.guest_ends(header.flags.get()));
            }
            Op::CreditUpdate => self.streams.list(ports),
            Op::CreditRequest => self.streams.with(ports, |connection| {
                connection.tell_credit();
                Fate::Lives
            }),
            Op::Reset => self.streams.remove(ports),
            Op::Request | Op::Unknown(_) => self.streams.kill(ports),
        }
    }

    /// Passes on the `len` bytes of data that `packet` has.
    fn write(&mut self, packet: &IoVecs, ports: Ports, len: usize) {
        VsockCounters::add(&self.counters.tx_bytes_count, len as u64);
        let fits = self.streams.buffered() + len <= MAX_BUFFERED;
        if !fits || self.data.gather_from(packet, PacketHeader::LEN, len) < len {
            return self.streams.kill(ports);
        }
        self.streams.with(ports, |connection| connection.write(&self.data));
        self.watch_room(ports);
    }

    /// Watches the socket for room to write while data is held for it.
    fn watch_room(&mut self, ports: Ports) {
        let Some((id, connection)) = self.streams.entry_mut(ports) else { return };
        let id = *id;
        let Some((stream, held)) = connection.change_of_watch() else { return };
        if self.sockets.watch_room(stream, id, held).is_err() {
            // What is held could never be written.
            VsockCounters::add(&self.counters.muxer_event_fails, 1);
            self.streams.kill(ports);
        }
    }

    /// The guest connects to a host program: the one at the socket's path with the port appended.
    fn connect_host(&mut self, ports: Ports, header: &PacketHeader) {
        let stream = match self.streams.make_room() {
            true => self.dial(ports.host),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        };
        let Ok((id, stream)) = stream else { return self.streams.refuse(ports, Op::Request) };
        let mut credit = Credit::default();
        credit.update(header.buf_alloc.get(), header.fwd_cnt.get());
        self.streams.insert(ports, id, VsockConnection::from_guest(stream, credit));
    }

    fn dial(&mut self, port: u32) -> io::Result<(u64, UnixStream)> {
        let stream = self.sockets.dial(port)?;
        Ok((self.sockets.watch(&stream)?, stream))
    }

    // To the guest.

    /// Gives the guest the next packet, or all packets that one read of a socket makes, if there is
    /// any; the bytes given.
    pub(super) fn give(&mut self, buffers: &mut Buffers) -> Result<usize, QueueError> {
        let reset = self.streams.next_reset().map(Packet::reset);
        let Some(packet) = reset.or_else(|| self.streams.next_packet(buffers)) else {
            return Ok(0);
        };
        let Packet { ports, op, flags, len, told } = packet;
        let header = PacketHeader {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: TYPE_STREAM.into(),
            op: u16::from(op).into(),
            flags: flags.into(),
            buf_alloc: told.0.into(),
            fwd_cnt: told.1.into(),
            ..PacketHeader::default()
        };
        let packets = buffers.give(len, header)?;
        VsockCounters::add(&self.counters.rx_packets_count, packets as u64);
        VsockCounters::add(&self.counters.rx_bytes_count, len as u64);
        Ok(len)
    }
}
