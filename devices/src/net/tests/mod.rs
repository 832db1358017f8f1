// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device from its driver's side, over a socket pair in place of a TAP: one datagram is
//! one frame with its virtio header, as a TAP has it.
//!
//! - `frames.rs`: frames in both directions, whole and unharmed
//! - `hostile.rs`: misbehaving guests, and hosts that go away
//! - `lifecycle.rs`: limits, queue pairs, the responder, resets
//! - `service.rs`: a TCP service on the interface
//! - `streams.rs`: a stream to a process in place of a TAP
//! - `vhost.rs`: misbehaving guests of vhost-net

mod frames;
mod hostile;
mod lifecycle;
mod service;
mod streams;
mod vhost;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::protocol::{HEADER_LEN, feature};
use super::*;
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{Deadline, DeviceLock, GuestMemoryMmap, QueueHost, RateLimiter};

const DRIVER: std::ops::Range<u64> = 0x1000..0x80_0000;
const RAM: usize = 16 << 20;
const RX: u16 = 0;
const TX: u16 = 1;
/// Features without large segments.
const NO_LARGE: u64 = !(feature::GUEST_TSO4 | feature::GUEST_TSO6);

struct Setup {
    pairs: u16,
    features: u64,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    responder: Option<Box<dyn Responder>>,
    deadline: fn() -> Deadline,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pairs: 1,
            features: u64::MAX,
            rx_limiter: RateLimiter::unlimited(),
            tx_limiter: RateLimiter::unlimited(),
            responder: None,
            deadline: Deadline::new,
        }
    }
}

struct Rig {
    driver: MockDriver,
    device: Arc<DeviceLock<Net>>,
    handle: NetHandle,
    mem: Arc<GuestMemoryMmap>,
    /// The host's ends, one per pair.
    wires: Vec<UnixDatagram>,
}

impl Setup {
    fn start(self) -> Rig {
        let mut wires = Vec::new();
        let mut links = Vec::new();
        for _ in 0..self.pairs {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            for socket in [&ours, &theirs] {
                socket.set_nonblocking(true).unwrap();
            }
            wires.push(ours);
            links.push(Link::Tap(Tap::from_socket(OwnedFd::from(theirs))));
        }
        Rig { wires, ..self.start_over(links) }
    }

    /// Over links of the test's own.
    fn start_over(self, links: Vec<Link>) -> Rig {
        let config = NetConfig {
            links,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: Some(1500),
            rx_limiter: self.rx_limiter,
            tx_limiter: self.tx_limiter,
            responder: self.responder,
            vhost: None,
        };
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let device = Net::new(config).unwrap();
        let handle = device.handle();
        let device = Arc::new(DeviceLock::new(device));
        let memory = Arc::clone(&mem);
        let mut driver = MockDriver::with_deadline(memory, device.clone(), DRIVER, self.deadline);
        let queues = 2 * self.pairs + u16::from(self.pairs > 1);
        driver.probe(self.features, queues);
        Rig { driver, device, handle, mem, wires: Vec::new() }
    }
}

impl Rig {
    fn new() -> Self {
        Setup::default().start()
    }

    /// Makes a buffer of `len` bytes available for receiving, cut into `parts`.
    fn post(&mut self, len: u32, parts: u32) -> (u16, GuestAddress) {
        let at = self.driver.alloc(len.into());
        let cut = len / parts;
        let chain: Vec<_> = (0..parts)
            .map(|part| {
                let from = GuestAddress(at.0 + u64::from(part * cut));
                let end = if part + 1 == parts { len } else { (part + 1) * cut };
                MockDescriptor::writable(from, end - part * cut)
            })
            .collect();
        (self.driver.add(RX, &chain), at)
    }

    /// A frame with a zero header arrives, and the device is notified.
    fn arrive(&mut self, pair: usize, frame: &[u8]) {
        self.wires[pair].send(&[&[0; HEADER_LEN], frame].concat()).unwrap();
        self.tell(pair);
    }

    fn tell(&mut self, pair: usize) {
        self.driver.transport().process_queue(u16::try_from(pair).unwrap() * 2);
        self.driver.run();
    }

    fn bytes(&self, at: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// Sends a frame in one buffer behind its header.
    fn send(&mut self, frame: &[u8]) {
        let mark = self.driver.alloc(0);
        let at = self.driver.put(&[&[0; HEADER_LEN], frame].concat());
        let len = u32::try_from(HEADER_LEN + frame.len()).unwrap();
        assert_eq!(self.driver.send(TX, &[MockDescriptor::readable(at, len)]), 0);
        self.driver.release(mark);
    }

    /// The frames sent on the wire of `pair`, without headers.
    fn left(&self, pair: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 17];
        match self.wires[pair].recv(&mut buffer) {
            Ok(len) => Some(buffer[HEADER_LEN..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed * 7 + i / 3) as u8).collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
