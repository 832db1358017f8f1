// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP service inside the monitor, on an address of its own: Ethernet, ARP, IPv4 and TCP by
//! smoltcp, requests and replies by a [`Service`].
//!
//! Whatever the guest sends, the service holds [`CONNECTIONS`] connections with two small buffers
//! and one reply each, and [`MAX_WAITING`] frames. A connection has [`PATIENCE`] for its handshake
//! and for each request with its reply, and is reset then.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time as net_time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::responder::Responder;

/// Connections at a time; TCP refuses more.
const CONNECTIONS: usize = 16;
/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 4 << 10;
/// Bytes of a reply that are under way.
const WINDOW: usize = 4 << 10;
/// Longest frame that the service sends: 1500 bytes and the Ethernet header.
const FRAME: usize = 1514;
/// Frames that wait for the guest.
const MAX_WAITING: usize = 64;
/// Time for a handshake, and for each request with its reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// The stack is not polled more often than this for its own timers.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

const ETHERTYPE: std::ops::Range<usize> = 12..14;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// Where an ARP packet in a frame names the address it is about (RFC 826).
const ARP_TARGET: std::ops::Range<usize> = 38..42;
/// Where an IPv4 packet in a frame names its destination (RFC 791).
const IPV4_DESTINATION: std::ops::Range<usize> = 30..34;

/// What a service makes of the bytes received so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// There is no whole request yet.
    Incomplete,
    /// The first `consumed` bytes are a request, and this is the reply.
    Reply {
        /// Bytes of the request.
        consumed: usize,
        /// What to send.
        bytes: Vec<u8>,
        /// Whether the connection ends then.
        close: bool,
    },
}

/// The protocol on a connection.
pub trait Service: Send {
    /// Answers the request at the beginning of `received`, which has at most [`MAX_REQUEST`] bytes;
    /// `full` if no more can come before some are consumed.
    fn answer(&mut self, received: &[u8], full: bool, now: Instant) -> Exchange;
}

/// What has happened, in the words of Firecracker's `mmds` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct TcpCounters {
    /// Frames for the service.
    pub rx_count: AtomicU64,
    /// Frames that reached the stack.
    pub rx_accepted: AtomicU64,
    /// Frames that were dropped: the guest takes no replies.
    pub rx_accepted_err: AtomicU64,
    /// Bytes of frames sent.
    pub tx_bytes: AtomicU64,
    /// Frames sent.
    pub tx_frames: AtomicU64,
    /// Connections that the guest opened.
    pub connections_created: AtomicU64,
    /// Connections that ended.
    pub connections_destroyed: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A TCP service on an interface; see the module.
pub struct TcpService {
    address: Ipv4Addr,
    mac: EthernetAddress,
    port: u16,
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<ServiceConnection>,
    service: Box<dyn Service>,
    counters: Arc<TcpCounters>,
    start: Instant,
}

impl TcpService {
    /// `service` at `port` of `address`, with the unicast Ethernet address `mac`.
    ///
    /// # Errors
    ///
    /// The host gives no random numbers.
    pub fn new(
        address: Ipv4Addr,
        port: u16,
        mac: [u8; 6],
        service: Box<dyn Service>,
        counters: Arc<TcpCounters>,
    ) -> std::io::Result<Self> {
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::NONBLOCK)?;
        let mac = EthernetAddress(mac);
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(config, &mut wire, net_time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Every address of a guest is on this link, whatever its network is.
            let _ = addresses.push(IpCidr::new(address.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let connections =
            (0..CONNECTIONS).map(|_| ServiceConnection::new(&mut sockets, port)).collect();
        let start = Instant::now();
        Ok(Self {
            address,
            mac,
            port,
            interface,
            wire,
            sockets,
            connections,
            service,
            counters,
            start,
        })
    }

    fn clock(&self, now: Instant) -> net_time::Instant {
        let since = now.saturating_duration_since(self.start);
        net_time::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Lets the stack and the service go on as far as they can.
    fn run(&mut self, now: Instant) {
        let clock = self.clock(now);
        self.interface.poll(clock, &mut self.wire, &mut self.sockets);
        if self.serve(now) {
            self.interface.poll(clock, &mut self.wire, &mut self.sockets);
            // Connections that this has ended make room for others.
            self.serve(now);
        }
    }

    /// Lets every connection go on; whether any has sent something or ended.
    fn serve(&mut self, now: Instant) -> bool {
        let mut any = false;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            match connection.follow(socket, now, &self.counters) {
                Fate::Goes => any |= connection.serve(socket, self.service.as_mut(), now),
                Fate::Aborted => any = true,
                Fate::Ended => {
                    // A new one: this might wait for the address of the host that it talked to.
                    self.sockets.remove(connection.socket);
                    *connection = ServiceConnection::new(&mut self.sockets, self.port);
                }
            }
        }
        any
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.wire.waiting.len()
    }
}

impl Responder for TcpService {
    fn wants(&self, start: &[u8]) -> bool {
        let target = match start.get(ETHERTYPE) {
            Some(kind) if kind == ARP => start.get(ARP_TARGET),
            Some(kind) if kind == IPV4 => start.get(IPV4_DESTINATION),
            _ => None,
        };
        target == Some(&self.address.octets()[..])
    }

    fn take(&mut self, frame: &[u8], now: Instant) {
        add(&self.counters.rx_count, 1);
        if self.wire.is_full() {
            add(&self.counters.rx_accepted_err, 1);
            return;
        }
        add(&self.counters.rx_accepted, 1);
        let mut frame = frame.to_vec();
        // The guest's route to the service may lead through a gateway.
        if frame.get(ETHERTYPE) == Some(&IPV4[..]) {
            frame[..6].copy_from_slice(&self.mac.0);
        }
        self.wire.received = Some(frame);
        self.run(now);
    }

    fn give(&mut self, frame: &mut Vec<u8>, now: Instant) -> bool {
        if self.wire.waiting.is_empty() {
            self.run(now);
        }
        let Some(next) = self.wire.waiting.pop_front() else { return false };
        add(&self.counters.tx_frames, 1);
        add(&self.counters.tx_bytes, next.len() as u64);
        *frame = next;
        true
    }

    fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        // The guest has to take these first; it notifies the device of its buffers.
        if !self.wire.waiting.is_empty() {
            return None;
        }
        let clock = self.clock(now);
        let delay = self.interface.poll_delay(clock, &self.sockets);
        let delay = delay.map(|delay| Duration::from_micros(delay.total_micros()));
        let timer = delay.and_then(|delay| now.checked_add(delay.max(SHORTEST_DELAY)));
        let ends = self.connections.iter().filter_map(|connection| connection.since);
        ends.map(|since| since + PATIENCE).chain(timer).min()
    }

    fn reset(&mut self) {
        self.wire = Wire::default();
        for connection in &mut self.connections {
            self.sockets.remove(connection.socket);
            add(&self.counters.connections_destroyed, connection.established.into());
            *connection = ServiceConnection::new(&mut self.sockets, self.port);
        }
    }
}

/// One connection's socket and the reply that is being sent on it.
struct ServiceConnection {
    socket: SocketHandle,
    reply: Vec<u8>,
    sent: usize,
    close: bool,
    /// When its handshake or its present request began; `None` without a connection.
    since: Option<Instant>,
    established: bool,
}

impl ServiceConnection {
    /// A socket that waits for a connection.
    fn new(sockets: &mut SocketSet<'_>, port: u16) -> Self {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(MAX_REQUEST), buffer(WINDOW));
        // The end of a reply must not wait for the guest's delayed acknowledgement.
        socket.set_nagle_enabled(false);
        // It fails only for a socket that is open, or port 0.
        let _ = socket.listen(port);
        let socket = sockets.add(socket);
        Self { socket, reply: Vec::new(), sent: 0, close: false, since: None, established: false }
    }

    /// Follows the state of the socket: begins, ends, takes too long.
    fn follow(&mut self, socket: &mut Socket<'_>, now: Instant, counters: &TcpCounters) -> Fate {
        match socket.state() {
            State::Listen => return Fate::Goes,
            State::Closed | State::TimeWait => {
                add(&counters.connections_destroyed, self.established.into());
                return Fate::Ended;
            }
            State::SynReceived => {}
            _ if self.established => {}
            _ => {
                self.established = true;
                self.since = Some(now);
                add(&counters.connections_created, 1);
            }
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < PATIENCE {
            return Fate::Goes;
        }
        socket.abort();
        Fate::Aborted
    }

    /// Answers requests for as long as there are both requests and room for replies; whether it has
    /// sent something.
    fn serve(&mut self, socket: &mut Socket<'_>, service: &mut dyn Service, now: Instant) -> bool {
        let mut any = false;
        while self.established {
            if self.sent < self.reply.len() {
                match socket.send_slice(&self.reply[self.sent..]) {
                    Ok(0) => break,
                    Ok(sent) => {
                        self.sent += sent;
                        any = true;
                    }
                    // The guest has reset the connection.
                    Err(_) => break,
                }
                continue;
            }
            if self.close {
                socket.close();
                return true;
            }
            if !socket.can_recv() {
                // The guest sends no more, and has its replies.
                if !socket.may_recv() && socket.may_send() {
                    socket.close();
                    return true;
                }
                break;
            }
            let mut received = vec![0; socket.recv_queue()];
            let len = socket.peek_slice(&mut received).unwrap_or(0);
            match service.answer(&received[..len], len >= MAX_REQUEST, now) {
                Exchange::Incomplete if socket.may_recv() => break,
                Exchange::Incomplete => self.close = true,
                Exchange::Reply { consumed, bytes, close } => {
                    let _ = socket.recv_slice(&mut received[..consumed.clamp(1, len.max(1))]);
                    (self.reply, self.sent, self.close) = (bytes, 0, close);
                    self.since = Some(now);
                }
            }
        }
        any
    }
}

/// What has become of a connection.
enum Fate {
    /// It is there, or is waited for.
    Goes,
    /// It took too long: the stack sends a reset.
    Aborted,
    /// It is over.
    Ended,
}

/// Frames between the guest and the stack.
#[derive(Debug, Default)]
struct Wire {
    received: Option<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
}

impl Wire {
    fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }
}

impl Device for Wire {
    type RxToken<'a> = ReceivedFrame;
    type TxToken<'a> = WaitingFrame<'a>;

    fn receive(&mut self, _now: net_time::Instant) -> Option<(ReceivedFrame, WaitingFrame<'_>)> {
        if self.is_full() {
            return None;
        }
        let frame = self.received.take()?;
        Some((ReceivedFrame(frame), WaitingFrame(&mut self.waiting)))
    }

    fn transmit(&mut self, _now: net_time::Instant) -> Option<WaitingFrame<'_>> {
        (!self.is_full()).then_some(WaitingFrame(&mut self.waiting))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        // The guest leaves its checksums to the network card.
        let mut checksums = ChecksumCapabilities::default();
        checksums.ipv4 = Checksum::Tx;
        checksums.tcp = Checksum::Tx;
        capabilities.checksum = checksums;
        capabilities
    }
}

struct ReceivedFrame(Vec<u8>);

impl RxToken for ReceivedFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

struct WaitingFrame<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for WaitingFrame<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, act: F) -> R {
        let mut frame = vec![0; len];
        let result = act(&mut frame);
        self.0.push_back(frame);
        result
    }
}
