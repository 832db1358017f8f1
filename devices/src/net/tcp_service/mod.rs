// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP service inside the monitor, on its own IP address: Ethernet, ARP, IPv4 and TCP by
//! smoltcp, the protocol above them by a [`Service`].
//!
//! ```text
//! frame ─▶ Wire ─▶ smoltcp ─▶ Connection ─▶ Service
//!                                 │            │
//! guest ◀── Wire ◀── smoltcp ◀────┴── answer ◀─┘
//! ```
//!
//! Limits, for any guest behaviour: [`CONNECTIONS`] connections, each with two fixed buffers and
//! one answer; [`wire::MAX_WAITING`] frames queued for the guest. Excess frames are lost, as on any
//! wire. A connection without progress for [`PATIENCE`] is reset, and an idle one is closed for a
//! new one if all are in use.
//!
//! - `exchange.rs`: what a protocol above TCP is to this module
//! - `connection.rs`: requests and answers of one connection
//! - `frame_fields.rs`: the fields of a frame that are checked before the stack sees it
//! - `wire.rs`: frames between the guest and smoltcp

mod connection;
mod exchange;
mod frame_fields;
#[cfg(test)]
mod tests;
mod wire;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mm::units::SaturatingInto;
use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time as net_time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::responder::Responder;
use crate::virtio::Deadline;
pub use connection::MAX_REQUEST;
use connection::{PATIENCE, ServiceConnection};
pub use exchange::{Exchange, Service};
use frame_fields::FrameSender;
use wire::Wire;

/// Limit on connections, as in Firecracker.
const CONNECTIONS: usize = 30;
/// Time after which an idle connection may make room for a new one.
const GRACE: Duration = Duration::from_secs(1);
/// Time after which the guest's Ethernet address is looked at again; smoltcp forgets it after 60.
const LEARN: Duration = Duration::from_secs(30);
/// Shortest time between two rounds that no frame causes.
const PAUSE: Duration = Duration::from_millis(1);

/// Counters with the names of Firecracker's `mmds` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct TcpCounters {
    /// Frames passed to the service.
    pub rx_accepted: AtomicU64,
    /// Of these, lost since too many frames wait for the guest.
    pub rx_accepted_err: AtomicU64,
    /// Connections that were reset to make room, or since there was none.
    pub rx_accepted_unusual: AtomicU64,
    /// Frames that the service has processed.
    pub rx_count: AtomicU64,
    /// Bytes of frames sent to the guest.
    pub tx_bytes: AtomicU64,
    /// Answers given.
    pub tx_count: AtomicU64,
    /// Frames sent to the guest.
    pub tx_frames: AtomicU64,
    /// Connections that the guest opened.
    pub connections_created: AtomicU64,
    /// Connections that have ended.
    pub connections_destroyed: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// A TCP service on one interface; see the module.
pub struct TcpService {
    address: Ipv4Addr,
    port: u16,
    mac: EthernetAddress,
    service: Box<dyn Service>,
    counters: Arc<TcpCounters>,

    // The stack.
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<ServiceConnection>,

    /// The sender of the last IPv4 packet, and when the stack learned of it.
    sender: Option<(FrameSender, Instant)>,
    /// Zero of the stack's clock.
    start: Instant,
    /// Next time at which the stack must run without a new frame.
    due: Option<Instant>,
}

impl TcpService {
    /// `service` at `port` of `address`, with the unicast Ethernet address `mac`. Services of several
    /// interfaces may share `counters`.
    ///
    /// # Errors
    ///
    /// The host cannot provide random numbers.
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
        let mut stack = Config::new(HardwareAddress::Ethernet(mac));
        // Sequence numbers must not be guessed.
        stack.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(stack, &mut wire, net_time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // All addresses of a guest are on this wire, regardless of its network. The list has
            // room.
            let _ = addresses.push(IpCidr::new(address.into(), 0));
        });
        let mut service = Self {
            address,
            port,
            mac,
            service,
            counters,
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            sender: None,
            start: Instant::now(),
            due: None,
        };
        service.listen(service.start);
        Ok(service)
    }

    /// Frames that wait for the guest.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.wire.waiting()
    }

    fn clock(&self, now: Instant) -> net_time::Instant {
        let since = now.saturating_duration_since(self.start);
        net_time::Instant::from_micros(since.as_micros().saturating_i64())
    }

    /// Runs the stack and the service as far as possible.
    fn run(&mut self, now: Instant, deadline: &mut Deadline) {
        self.poll(now, deadline);
        let unfinished = self.serve(now, deadline);
        self.poll(now, deadline);
        self.clear(now);
        self.due = self.next_due(now, unfinished);
    }

    /// Tells the stack the Ethernet address of the guest that sent `frame`, an IPv4 packet. If the
    /// guest sends packets through a router, it never requests the service's Ethernet address, and
    /// the stack would have to resolve the guest's before each answer.
    fn learn(&mut self, frame: &[u8], now: Instant, deadline: &mut Deadline) {
        let Some(sender) = FrameSender::of(frame) else { return };
        let known = |(known, at): (FrameSender, Instant)| {
            known == sender && now.saturating_duration_since(at) < LEARN
        };
        if self.sender.is_some_and(known) {
            return;
        }
        // The stack does not answer a reply.
        if self.wire.receive(sender.arp_reply(self.mac.0, self.address)) {
            self.poll(now, deadline);
            self.sender = Some((sender, now));
        }
    }

    fn poll(&mut self, now: Instant, deadline: &mut Deadline) {
        deadline.charge(Deadline::COMMAND);
        let before = self.wire.waiting();
        let clock = self.clock(now);
        self.interface.poll(clock, &mut self.wire, &mut self.sockets);
        deadline.charge(Deadline::ENTRY * self.wire.waiting().saturating_sub(before) as u64);
    }

    /// Answers requests; whether the deadline passed before all were.
    fn serve(&mut self, now: Instant, deadline: &mut Deadline) -> bool {
        let mut unfinished = false;
        let mut answers = 0;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle());
            let served = connection.serve(socket, self.service.as_mut(), now, deadline);
            unfinished |= served.unfinished;
            answers += served.answers;
        }
        count(&self.counters.tx_count, answers);
        unfinished
    }

    /// Removes connections that have ended or must, and listens for the next one.
    fn clear(&mut self, now: Instant) {
        let Self { connections, sockets, counters, .. } = self;
        connections.retain_mut(|connection| {
            let socket = sockets.get_mut::<Socket<'_>>(connection.handle());
            if socket.state() == State::Listen {
                if connection.is_open() {
                    // The guest reset it before it was established, and the socket listens again.
                    count(&counters.connections_destroyed, 1);
                    connection.forget();
                }
                return true;
            }
            if connection.open() {
                count(&counters.connections_created, 1);
            }
            // The guest's last acknowledgement may be lost: then a reset follows.
            let ended = matches!(socket.state(), State::Closed | State::TimeWait);
            if ended {
                sockets.remove(connection.handle());
                count(&counters.connections_destroyed, 1);
            } else if connection.idle(now) >= PATIENCE {
                // Removed in the next round, when the reset has been sent.
                socket.abort();
            }
            !ended
        });
        if self.connections.iter().filter(|connection| connection.is_open()).count() > CONNECTIONS {
            self.make_room(now);
        }
        self.listen(now);
    }

    /// Resets the connection that is idle longest, or the newest if none is idle for long.
    fn make_room(&mut self, now: Instant) {
        let mut open = self.connections.iter().filter(|connection| connection.is_open());
        let Some(idlest) = open.clone().max_by_key(|connection| connection.idle(now)) else {
            return;
        };
        let victim = if idlest.idle(now) >= GRACE { Some(idlest) } else { open.next_back() };
        if let Some(handle) = victim.map(ServiceConnection::handle) {
            self.sockets.get_mut::<Socket<'_>>(handle).abort();
            count(&self.counters.rx_accepted_unusual, 1);
            // One poll sends the reset, if there is room for it.
            let clock = self.clock(now);
            self.interface.poll(clock, &mut self.wire, &mut self.sockets);
            self.sockets.remove(handle);
            count(&self.counters.connections_destroyed, 1);
            self.connections.retain(|connection| connection.handle() != handle);
        }
    }

    /// Keeps exactly one socket that listens.
    fn listen(&mut self, now: Instant) {
        let mut listening = false;
        let Self { connections, sockets, .. } = self;
        connections.retain(|connection| {
            let surplus = !connection.is_open() && std::mem::replace(&mut listening, true);
            if surplus {
                sockets.remove(connection.handle());
            }
            !surplus
        });
        if !listening {
            connections.push(ServiceConnection::listen(sockets, self.port, now));
        }
    }

    /// Next time to run without a new frame.
    fn next_due(&mut self, now: Instant, unfinished: bool) -> Option<Instant> {
        if unfinished {
            return Some(now);
        }
        if self.wire.is_full() {
            // The guest must receive frames first, and notifies when it has room.
            return None;
        }
        let clock = self.clock(now);
        let stack = self.interface.poll_at(clock, &self.sockets).map(|at| {
            let micros = at.total_micros().saturating_u64();
            self.start + Duration::from_micros(micros)
        });
        let open = self.connections.iter().filter(|connection| connection.is_open());
        let patience = open.map(|connection| connection.moved() + PATIENCE).min();
        let next = [stack, patience].into_iter().flatten().min()?;
        Some(next.max(now + PAUSE))
    }
}

impl Responder for TcpService {
    fn wants(&self, start: &[u8]) -> bool {
        frame_fields::target(start) == Some(self.address)
    }

    fn take(&mut self, frame: &[u8], now: Instant, deadline: &mut Deadline) {
        count(&self.counters.rx_accepted, 1);
        let mut frame = frame.to_vec();
        if frame_fields::is_ipv4(&frame) {
            frame[..6].copy_from_slice(&self.mac.0);
            self.learn(&frame, now, deadline);
        } else {
            // ARP may give the stack another address.
            self.sender = None;
        }
        if !self.wire.receive(frame) {
            count(&self.counters.rx_accepted_err, 1);
            return;
        }
        self.run(now, deadline);
        count(&self.counters.rx_count, 1);
    }

    fn has_frames(&self) -> bool {
        self.wire.waiting() > 0
    }

    fn give(&mut self, frame: &mut Vec<u8>, now: Instant, deadline: &mut Deadline) -> bool {
        if !self.has_frames() && self.due.is_some_and(|due| due <= now) {
            self.run(now, deadline);
        }
        let was_full = self.wire.is_full();
        let Some(next) = self.wire.next() else { return false };
        if was_full {
            // The stack may have more to send.
            self.due = Some(now);
        }
        count(&self.counters.tx_frames, 1);
        count(&self.counters.tx_bytes, next.len());
        deadline.charge(next.len() as u64);
        *frame = next;
        true
    }

    fn next_deadline(&mut self, _now: Instant) -> Option<Instant> {
        // While frames wait, only the guest's next buffer matters.
        self.due.filter(|_| !self.has_frames())
    }

    fn reset(&mut self) {
        let open = self.connections.iter().filter(|connection| connection.is_open()).count();
        count(&self.counters.connections_destroyed, open);
        self.connections.clear();
        self.sockets = SocketSet::new(Vec::new());
        self.wire = Wire::default();
        self.sender = None;
        self.due = None;
        self.listen(Instant::now());
    }
}
