// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All streams of a guest: the existing ones, their sockets, and which have packets for the guest.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::MAX_CONNECTIONS;
use super::buffers::Buffers;
use super::connection::{Fate, NextPacket, VsockConnection};
use super::handle::VsockCounters;
use super::protocol::Op;

/// Resets that may wait for a buffer of the guest's.
const MAX_RESETS: usize = 256;
/// First port on the host's side of connections to the guest.
const FIRST_PORT: u32 = 1 << 30;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// What an event of a socket belongs to.
#[derive(Debug)]
pub(super) enum SocketOwner {
    Greeting(UnixStream),
    Connection(Ports),
}

/// A packet for the guest, without its data.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) ports: Ports,
    pub(super) op: Op,
    pub(super) flags: u32,
    /// Bytes of data; where one buffer cannot hold them, each has a header of its own.
    pub(super) len: usize,
    /// Space in the connection's buffer, and bytes taken out of it (5.10.6.3).
    pub(super) told: (u32, u32),
}

impl Packet {
    pub(super) const fn reset(ports: Ports) -> Self {
        Self { ports, op: Op::Reset, flags: 0, len: 0, told: (0, 0) }
    }
}

/// All streams of a guest.
#[derive(Debug)]
pub(super) struct StreamTable {
    connections: HashMap<Ports, (u64, VsockConnection)>,
    /// Sockets by the number that their events carry.
    owners: HashMap<u64, SocketOwner>,
    next_port: u32,
    /// Connections with something for the guest, each once.
    ready: VecDeque<Ports>,
    /// Resets for connections that are not there.
    resets: VecDeque<Ports>,
    /// Bytes that connections hold for host programs.
    buffered: usize,
    /// Most connections and greetings.
    limit: usize,
    counters: Arc<VsockCounters>,
}

impl StreamTable {
    pub(super) fn new(limit: usize, counters: Arc<VsockCounters>) -> Self {
        Self {
            connections: HashMap::new(),
            owners: HashMap::new(),
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            buffered: 0,
            limit: limit.min(MAX_CONNECTIONS),
            counters,
        }
    }

    /// Connections, sockets, and streams with something for the guest.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.owners.len(), self.ready.len() + self.resets.len())
    }

    /// Ends all streams without a message to either side; returns the sockets and their data.
    pub(super) fn clear(&mut self) -> Box<dyn Any + Send> {
        let ended = self.connections.len() as u64;
        VsockCounters::add(&self.counters.conns_removed, ended);
        let connections = std::mem::take(&mut self.connections);
        let owners = std::mem::take(&mut self.owners);
        self.ready.clear();
        self.resets.clear();
        self.buffered = 0;
        Box::new((connections, owners))
    }

    /// Whether there is anything for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    pub(super) fn has_room_for_resets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Bytes that connections hold for host programs.
    pub(super) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Whether one more connection is allowed. If needed, a record whose program has closed its socket
    /// is dropped, or the program that has been connected for longest without naming a port.
    pub(super) fn make_room(&mut self) -> bool {
        if self.count() < self.limit {
            return true;
        }
        let lingers = self.connections.iter().find(|(_, (_, connection))| connection.lingers());
        if let Some(ports) = lingers.map(|(ports, _)| *ports).filter(|_| self.has_room_for_resets())
        {
            self.kill(ports);
            return true;
        }
        // Numbers of events grow.
        let greeting = |(id, owner): (&u64, &SocketOwner)| {
            matches!(owner, SocketOwner::Greeting(_)).then_some(*id)
        };
        let silent = self.owners.iter().filter_map(greeting).min();
        silent.is_some_and(|id| self.end_greeting(id).is_some())
    }

    fn count(&self) -> usize {
        let greeting = |owner: &&SocketOwner| matches!(owner, SocketOwner::Greeting(_));
        // Every connection has an owner entry while its socket lives; records have none.
        self.connections.len() + self.owners.values().filter(greeting).count()
    }

    /// The owner of events with number `id`.
    pub(super) fn owner(&self, id: u64) -> Option<&SocketOwner> {
        self.owners.get(&id)
    }

    pub(super) fn get_mut(&mut self, ports: Ports) -> Option<&mut VsockConnection> {
        self.connections.get_mut(&ports).map(|(_, connection)| connection)
    }

    /// A connection with the number of its socket's events.
    pub(super) fn entry_mut(&mut self, ports: Ports) -> Option<&mut (u64, VsockConnection)> {
        self.connections.get_mut(&ports)
    }

    /// Keeps a host program that has not yet named a port.
    pub(super) fn greet(&mut self, id: u64, stream: UnixStream) {
        self.owners.insert(id, SocketOwner::Greeting(stream));
    }

    /// Removes a host program that has not become a connection; returns its socket.
    pub(super) fn end_greeting(&mut self, id: u64) -> Option<UnixStream> {
        match self.owners.remove(&id) {
            Some(SocketOwner::Greeting(stream)) => Some(stream),
            _ => None,
        }
    }

    /// A host program connects to port `port` of the guest.
    pub(super) fn connect_guest(&mut self, id: u64, port: u32) {
        let Some(stream) = self.end_greeting(id) else { return };
        let ports = Ports { host: self.free_port(), guest: port };
        self.insert(ports, id, VsockConnection::to_guest(stream));
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

    /// Adds a connection whose socket has events with number `id`.
    pub(super) fn insert(&mut self, ports: Ports, id: u64, connection: VsockConnection) {
        VsockCounters::add(&self.counters.conns_added, 1);
        self.owners.insert(id, SocketOwner::Connection(ports));
        self.connections.insert(ports, (id, connection));
        self.list(ports);
    }

    /// Runs `act` on a connection and handles the result.
    pub(super) fn with(&mut self, ports: Ports, act: impl FnOnce(&mut VsockConnection) -> Fate) {
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
    pub(super) fn list(&mut self, ports: Ports) {
        if let Some((_, connection)) = self.connections.get_mut(&ports)
            && !connection.listed
            && connection.next() != NextPacket::Nothing
        {
            connection.listed = true;
            self.ready.push_back(ports);
        }
    }

    /// Ends a connection and schedules a reset to the guest, unless it has not heard of it: programs
    /// that come and go cost nothing while a guest takes no packets.
    pub(super) fn kill(&mut self, ports: Ports) {
        let known =
            self.connections.get(&ports).is_none_or(|(_, connection)| connection.is_known());
        VsockCounters::add(&self.counters.conns_killed, 1);
        self.remove(ports);
        if known {
            self.resets.push_back(ports);
        }
    }

    /// Ends a connection that the guest has already closed.
    pub(super) fn remove(&mut self, ports: Ports) {
        let Some((id, connection)) = self.connections.remove(&ports) else { return };
        VsockCounters::add(&self.counters.conns_removed, 1);
        self.owners.remove(&id);
        self.buffered -= connection.buffered();
        if connection.listed {
            self.ready.retain(|other| *other != ports);
        }
    }

    /// Answers a packet for a connection that is not there, unless it is a reset itself.
    pub(super) fn refuse(&mut self, ports: Ports, op: Op) {
        if self.connections.contains_key(&ports) {
            return self.kill(ports);
        }
        if op != Op::Reset {
            self.resets.push_back(ports);
        }
    }

    /// The next connection for which a reset is due.
    pub(super) fn next_reset(&mut self) -> Option<Ports> {
        self.resets.pop_front()
    }

    /// The next packet of a connection; its data, which may be more than one buffer holds, are in
    /// `buffers`.
    pub(super) fn next_packet(&mut self, buffers: &mut Buffers) -> Option<Packet> {
        while let Some(ports) = self.ready.pop_front() {
            let Some((_, connection)) = self.connections.get_mut(&ports) else { continue };
            connection.listed = false;
            let (op, flags, len) = match connection.next() {
                NextPacket::Nothing => continue,
                NextPacket::Packet(op, flags) => (op, flags, 0),
                NextPacket::Data(room) => {
                    let room = buffers.room(room as usize);
                    let held = connection.buffered();
                    let read = connection.read(room);
                    self.buffered = self.buffered - held + connection.buffered();
                    match read {
                        Ok(0) => {
                            // No data, or end of file: then a shutdown is due.
                            self.list(ports);
                            continue;
                        }
                        Ok(len) => (Op::Rw, 0, len),
                        Err(_) => {
                            VsockCounters::add(&self.counters.rx_read_fails, 1);
                            self.list(ports);
                            continue;
                        }
                    }
                }
            };
            connection.sent(op);
            let told = connection.credit.tell();
            self.list(ports);
            return Some(Packet { ports, op, flags, len, told });
        }
        None
    }
}
