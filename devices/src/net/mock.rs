// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's TCP, for tests of services that answer on an interface: a TCP stack behind a wire that
//! may lose frames.

#![allow(clippy::missing_panics_doc, reason = "a mock panics where a test has gone wrong")]

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time as net_time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::responder::Responder;
use crate::virtio::Deadline;

/// Bytes that a connection of the client sends or receives ahead.
const BUFFER: usize = 64 << 10;
/// Frames that may cross the wire before it must be quiet.
const MAX_FRAMES: usize = 10_000;

/// A guest's end of TCP connections to a [`Responder`]. It panics if a test fails.
pub struct MockClient {
    interface: Interface,
    wire: MockWire,
    sockets: SocketSet<'static>,
    server: (Ipv4Addr, u16),
    next_port: u16,
    start: Instant,
    /// Every frame of this number from the service is lost; 0 for none.
    pub lose_every: usize,
    frames: usize,
}

/// A connection of a [`MockClient`].
#[derive(Debug, Clone, Copy)]
pub struct MockConnection(SocketHandle);

impl MockClient {
    /// A guest with `address`, which talks to `server`.
    pub fn new(address: Ipv4Addr, server: (Ipv4Addr, u16), start: Instant) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 1]));
        let mut wire = MockWire::default();
        let mut interface = Interface::new(Config::new(mac), &mut wire, net_time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address.into(), 0)).expect("room for an address");
        });
        let sockets = SocketSet::new(Vec::new());
        let next_port = 40_000;
        Self { interface, wire, sockets, server, next_port, start, lose_every: 0, frames: 0 }
    }

    /// Begins to connect.
    pub fn connect(&mut self) -> MockConnection {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        self.next_port += 1;
        let context = self.interface.context();
        socket.connect(context, self.server, self.next_port).expect("an unused port");
        MockConnection(self.sockets.add(socket))
    }

    /// Puts `bytes` into the connection's buffer.
    pub fn send(&mut self, connection: MockConnection, bytes: &[u8]) {
        let sent = self.socket(connection).send_slice(bytes).expect("a connection");
        assert_eq!(sent, bytes.len(), "the buffer is full");
    }

    /// Data received so far.
    pub fn received(&mut self, connection: MockConnection) -> Vec<u8> {
        let mut bytes = vec![0; BUFFER];
        let len = self.socket(connection).recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        bytes
    }

    /// Ends the client's side.
    pub fn close(&mut self, connection: MockConnection) {
        self.socket(connection).close();
    }

    /// Whether data can go both ways.
    pub fn is_established(&mut self, connection: MockConnection) -> bool {
        self.socket(connection).state() == State::Established
    }

    /// Whether the connection has ended or was refused.
    pub fn is_closed(&mut self, connection: MockConnection) -> bool {
        matches!(self.socket(connection).state(), State::Closed | State::TimeWait)
    }

    /// Forwards frames in both directions at time `now` until none are left; returns how many.
    pub fn settle(&mut self, service: &mut dyn Responder, now: Instant) -> usize {
        let since = now.saturating_duration_since(self.start).as_micros();
        let clock = net_time::Instant::from_micros(i64::try_from(since).expect("a short time"));
        let mut count = 0;
        let mut deadline = Deadline::never();
        loop {
            self.interface.poll(clock, &mut self.wire, &mut self.sockets);
            let before = count;
            while let Some(frame) = self.wire.sent.pop_front() {
                count += 1;
                assert!(service.wants(&frame), "a frame of the client's for another host");
                service.take(&frame, now, &mut deadline);
            }
            let mut frame = Vec::new();
            while service.give(&mut frame, now, &mut deadline) {
                count += 1;
                self.frames += 1;
                if self.lose_every == 0 || !self.frames.is_multiple_of(self.lose_every) {
                    self.wire.arrived.push_back(std::mem::take(&mut frame));
                }
            }
            assert!(count < MAX_FRAMES, "the wire does not become quiet");
            if count == before {
                return count;
            }
        }
    }

    /// A whole exchange on a new connection: connects, sends `request`, and returns the reply.
    pub fn exchange(
        &mut self,
        service: &mut dyn Responder,
        request: &[u8],
        now: Instant,
    ) -> Vec<u8> {
        let connection = self.connect();
        self.settle(service, now);
        self.send(connection, request);
        self.settle(service, now);
        let reply = self.received(connection);
        self.close(connection);
        self.settle(service, now);
        self.sockets.remove(connection.0);
        reply
    }

    fn socket(&mut self, connection: MockConnection) -> &mut Socket<'static> {
        self.sockets.get_mut(connection.0)
    }
}

#[derive(Debug, Default)]
struct MockWire {
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

impl Device for MockWire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _now: net_time::Instant) -> Option<(Arrived, Sent<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((Arrived(frame), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _now: net_time::Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, act: F) -> R {
        let mut frame = vec![0; len];
        let result = act(&mut frame);
        self.0.push_back(frame);
        result
    }
}
