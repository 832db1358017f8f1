// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All streams of a guest: what its packets do to them, what the host's sockets do, and what goes
//! to the guest next.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::{Connection, Fate, Next};
use super::credit::Credit;
use super::greeting::{self, Progress as Greeting};
use super::handle::Counters;
use super::protocol::{HOST_CID, Header, Op, TYPE_STREAM};
use super::sockets::{HostSockets, SocketNews};
use super::{MAX_BUFFERED, MAX_CONNECTIONS, VsockConfig};
use crate::virtio::{Deadline, GuestMemoryMmap, IoVecs, Progress, Segments};

/// Resets that may wait for a buffer of the guest's.
const MAX_RESETS: usize = 256;
/// First port on the host's side of connections to the guest.
const FIRST_PORT: u32 = 1 << 30;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

/// What an event of a socket belongs to.
#[derive(Debug)]
enum Owner {
    Greeting(UnixStream),
    Connection(Ports),
}

/// All streams of a guest.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    sockets: HostSockets,
    /// News of sockets; kept for its memory.
    news: Vec<SocketNews>,
    connections: HashMap<Ports, (u64, Connection)>,
    /// Sockets by the number that their events carry.
    owners: HashMap<u64, Owner>,
    next_port: u32,
    /// Connections with something for the guest, each once.
    ready: VecDeque<Ports>,
    /// Resets for connections that are not there.
    resets: VecDeque<Ports>,
    /// Bytes that connections hold for host programs.
    buffered: usize,
    counters: Arc<Counters>,
}

impl Muxer {
    pub(super) fn new(config: VsockConfig, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            guest_cid: config.guest_cid,
            sockets: HostSockets::new(config.listener, config.path)?,
            news: Vec::new(),
            connections: HashMap::new(),
            owners: HashMap::new(),
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            buffered: 0,
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
        (self.connections.len(), self.owners.len(), self.ready.len() + self.resets.len())
    }

    /// The guest has gone: everything ends, and what the host connects later waits.
    pub(super) fn reset(&mut self) {
        let ended = self.connections.len() as u64;
        Counters::add(&self.counters.conns_removed, ended);
        self.connections.clear();
        self.owners.clear();
        self.ready.clear();
        self.resets.clear();
        self.buffered = 0;
        self.sockets.look_again();
    }

    /// Whether there is anything for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// Whether more packets of the guest can be taken: answers have a limit.
    pub(super) fn can_take(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    // The host's side.

    /// Takes the news of all sockets.
    pub(super) fn poll_host(&mut self, deadline: &mut Deadline) -> Progress {
        let mut news = std::mem::take(&mut self.news);
        let progress = loop {
            if self.accept(deadline) == Progress::More || deadline.passed() {
                break Progress::More;
            }
            match self.sockets.poll(&mut news) {
                Ok(true) => {}
                Ok(false) => break Progress::Done,
                Err(_) => {
                    Counters::add(&self.counters.muxer_event_fails, 1);
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

    fn accept(&mut self, deadline: &mut Deadline) -> Progress {
        loop {
            if deadline.passed() {
                return Progress::More;
            }
            match self.sockets.accept() {
                Ok(Some(stream)) => {
                    deadline.charge(Deadline::COMMAND);
                    self.greet(stream);
                }
                Ok(None) => return Progress::Done,
                Err(_) => {
                    Counters::add(&self.counters.muxer_event_fails, 1);
                    return Progress::Done;
                }
            }
        }
    }

    /// A host program has connected. Beyond the limit it finds its connection closed.
    fn greet(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() || !self.make_room() {
            return;
        }
        // Its line may be there already: the first event says so.
        if let Ok(id) = self.sockets.watch(&stream) {
            self.owners.insert(id, Owner::Greeting(stream));
        }
    }

    /// Whether one more connection is allowed. A record whose program has gone makes way.
    fn make_room(&mut self) -> bool {
        if self.count() < MAX_CONNECTIONS {
            return true;
        }
        let lingers = self.connections.iter().find(|(_, (_, connection))| connection.lingers());
        match lingers.map(|(ports, _)| *ports) {
            Some(ports) if self.can_take() => {
                self.kill(ports);
                true
            }
            _ => false,
        }
    }

    fn count(&self) -> usize {
        let greeting = |owner: &&Owner| matches!(owner, Owner::Greeting(_));
        // Every connection has an owner entry while its socket lives; records have none.
        self.connections.len() + self.owners.values().filter(greeting).count()
    }

    fn on_news(&mut self, news: SocketNews) {
        let SocketNews { id, readable, writable, gone } = news;
        match self.owners.get(&id) {
            Some(Owner::Greeting(stream)) => match greeting::advance(stream) {
                Greeting::Waits => {}
                Greeting::Nonsense => {
                    self.owners.remove(&id);
                }
                Greeting::Port(port) => self.connect_guest(id, port),
            },
            Some(Owner::Connection(ports)) => {
                let ports = *ports;
                self.with(ports, |connection| connection.on_socket(readable, writable, gone));
            }
            None => {}
        }
    }

    /// A host program wants port `port` of the guest.
    fn connect_guest(&mut self, id: u64, port: u32) {
        let Some(Owner::Greeting(stream)) = self.owners.remove(&id) else { return };
        let ports = Ports { host: self.free_port(), guest: port };
        self.insert(ports, id, Connection::to_guest(stream));
    }

    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == u32::MAX >> 1 { FIRST_PORT } else { port + 1 };
            // There are more ports than connections.
            if !self.connections.keys().any(|ports| ports.host == port) {
                return port;
            }
        }
    }

    fn insert(&mut self, ports: Ports, id: u64, connection: Connection) {
        Counters::add(&self.counters.conns_added, 1);
        self.owners.insert(id, Owner::Connection(ports));
        self.connections.insert(ports, (id, connection));
        self.list(ports);
    }

    // What happens to a connection.

    /// Lets `act` work on a connection, and does what follows.
    fn with(&mut self, ports: Ports, act: impl FnOnce(&mut Connection) -> Fate) {
        let Some((_, connection)) = self.connections.get_mut(&ports) else { return };
        let before = connection.buffered();
        let fate = act(connection);
        self.buffered = self.buffered - before + connection.buffered();
        match fate {
            Fate::Lives => self.list(ports),
            Fate::Reset => self.kill(ports),
        }
    }

    /// Notes that a connection may have something for the guest.
    fn list(&mut self, ports: Ports) {
        if let Some((_, connection)) = self.connections.get_mut(&ports)
            && !connection.listed
            && connection.next() != Next::Nothing
        {
            connection.listed = true;
            self.ready.push_back(ports);
        }
    }

    fn kill(&mut self, ports: Ports) {
        Counters::add(&self.counters.conns_killed, 1);
        self.remove(ports);
        self.resets.push_back(ports);
    }

    fn remove(&mut self, ports: Ports) {
        let Some((id, connection)) = self.connections.remove(&ports) else { return };
        Counters::add(&self.counters.conns_removed, 1);
        self.owners.remove(&id);
        self.buffered -= connection.buffered();
        if connection.listed {
            self.ready.retain(|other| *other != ports);
        }
    }

    // The guest's side.

    /// Takes one packet of the guest: `buffer` is header and data.
    pub(super) fn take(&mut self, mem: &Arc<GuestMemoryMmap>, buffer: &Segments, header: &Header) {
        let (op, len) = (Op::from(header.op.get()), header.len.get());
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        if header.src_cid.get() != self.guest_cid {
            // Its sender is unknown: no reply is sent (5.10.6.1.2).
            Counters::add(&self.counters.tx_queue_event_fails, 1);
            return;
        }
        let whole = u64::from(len) <= buffer.readable_len().saturating_sub(Header::LEN as u64);
        let sound = header.dst_cid.get() == HOST_CID && header.kind.get() == TYPE_STREAM && whole;
        if !sound {
            return self.refuse(ports, op);
        }
        match self.connections.get_mut(&ports) {
            Some((_, connection)) => {
                connection.heard(header.buf_alloc.get(), header.fwd_cnt.get());
            }
            None if op == Op::Request => return self.connect_host(ports, header),
            None => return self.refuse(ports, op),
        }
        match op {
            Op::Response => {
                let greeting = format!("OK {}\n", ports.host);
                self.with(ports, |connection| connection.accepted(greeting.as_bytes()));
            }
            Op::Rw => self.write(mem, buffer, ports, len),
            Op::Shutdown => {
                self.with(ports, |connection| connection.guest_ends(header.flags.get()));
            }
            Op::CreditUpdate => self.list(ports),
            Op::CreditRequest => self.with(ports, |connection| {
                connection.tell_credit();
                Fate::Lives
            }),
            Op::Reset => self.remove(ports),
            Op::Request | Op::Unknown(_) => self.kill(ports),
        }
    }

    fn write(&mut self, mem: &Arc<GuestMemoryMmap>, buffer: &Segments, ports: Ports, len: u32) {
        Counters::add(&self.counters.tx_bytes_count, len.into());
        let Ok(len) = usize::try_from(len) else { return self.kill(ports) };
        if self.buffered + len > MAX_BUFFERED {
            return self.kill(ports);
        }
        let mut vectors = IoVecs::default();
        if vectors.gather(mem, &buffer.readable, Header::LEN as u64, len) < len {
            return self.kill(ports);
        }
        self.with(ports, |connection| {
            connection.write(&vectors, |offset, bytes| {
                bytes.resize(len - offset, 0);
                buffer.read(mem, (Header::LEN + offset) as u64, bytes);
            })
        });
    }

    /// Answers a packet for a connection that is not there, unless it is a reset itself.
    fn refuse(&mut self, ports: Ports, op: Op) {
        if self.connections.contains_key(&ports) {
            return self.kill(ports);
        }
        if op != Op::Reset {
            self.resets.push_back(ports);
        }
    }

    /// The guest wants a host program: the one at the socket's path with the port behind it.
    fn connect_host(&mut self, ports: Ports, header: &Header) {
        let stream = match self.make_room() {
            true => self.dial(ports.host),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        };
        let Ok((id, stream)) = stream else { return self.refuse(ports, Op::Request) };
        let mut credit = Credit::default();
        credit.update(header.buf_alloc.get(), header.fwd_cnt.get());
        self.insert(ports, id, Connection::from_guest(stream, credit));
    }

    fn dial(&mut self, port: u32) -> io::Result<(u64, UnixStream)> {
        let stream = self.sockets.dial(port)?;
        Ok((self.sockets.watch(&stream)?, stream))
    }

    // To the guest.

    /// Writes the next packet for the guest into `buffer`; its length, or nothing if there is none.
    pub(super) fn give(
        &mut self,
        mem: &Arc<GuestMemoryMmap>,
        buffer: &Segments,
        vectors: &mut IoVecs,
    ) -> Option<usize> {
        if let Some(ports) = self.resets.pop_front() {
            let header = self.header(ports, Op::Reset, 0, 0, (0, 0));
            return Some(self.put(mem, buffer, &header, 0));
        }
        while let Some(ports) = self.ready.pop_front() {
            let Some((_, connection)) = self.connections.get_mut(&ports) else { continue };
            connection.listed = false;
            let (op, flags, len) = match connection.next() {
                Next::Nothing => continue,
                Next::Packet(op, flags) => {
                    connection.sent(op);
                    (op, flags, 0)
                }
                Next::Data(room) => {
                    let room = usize::try_from(room).unwrap_or(usize::MAX);
                    vectors.gather(mem, &buffer.writable, Header::LEN as u64, room);
                    let held = connection.buffered();
                    let read = connection.read(vectors);
                    self.buffered = self.buffered - held + connection.buffered();
                    match read {
                        Ok(0) => {
                            // Nothing there, or no more: then a shutdown is due.
                            self.list(ports);
                            continue;
                        }
                        Ok(len) => (Op::Rw, 0, len),
                        Err(_) => {
                            Counters::add(&self.counters.rx_read_fails, 1);
                            self.list(ports);
                            continue;
                        }
                    }
                }
            };
            if len > 0 {
                connection.sent(Op::Rw);
            }
            let told = connection.credit.tell();
            let header = self.header(ports, op, flags, len, told);
            self.list(ports);
            return Some(self.put(mem, buffer, &header, len));
        }
        None
    }

    fn header(&self, ports: Ports, op: Op, flags: u32, len: usize, told: (u32, u32)) -> Header {
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            len: u32::try_from(len).unwrap_or(0).into(),
            kind: TYPE_STREAM.into(),
            op: u16::from(op).into(),
            flags: flags.into(),
            buf_alloc: told.0.into(),
            fwd_cnt: told.1.into(),
        }
    }

    fn put(&self, mem: &GuestMemoryMmap, buffer: &Segments, header: &Header, len: usize) -> usize {
        Counters::add(&self.counters.rx_packets_count, 1);
        Counters::add(&self.counters.rx_bytes_count, len as u64);
        buffer.write(mem, 0, zerocopy::IntoBytes::as_bytes(header)) + len
    }
}
