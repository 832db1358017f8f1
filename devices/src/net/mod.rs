// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device (virtio 1.3, 5.1) over a TAP interface of the host, or over a stream to a
//! process that has the host's sockets, such as passt(1).
//!
//! Frames move between a TAP and the guest's own pages by one system call each, with the virtio
//! header in front, which the kernel reads and writes: checksums and segmentation that the guest
//! leaves to its network card are left to the host's kernel, and a packet of 64 KiB crosses in one
//! piece. A stream has bare frames, which are copied, without offload of checksums and
//! segmentation, so the guest is not offered that.
//!
//! ```text
//! receive queue ─▶ receiver ◀── link       transmit queue ─▶ transmitter ──▶ link
//!                     ▲                                          │
//!                     └───────── responder (MMDS) ◀──────────────┘ frames to its address
//! ```
//!
//! With vhost-net, threads of the host's kernel take the place of receiver and transmitter; this
//! device then serves the control queue and configuration space.
//!
//! A frame for which the guest has no buffer stays in the TAP's queue, whose length is the host's
//! to set, or in the stream; a frame that the TAP does not take is lost, as on any wire. A stream
//! that is full holds the guest's frames back. Once it has ended, the guest is notified that the
//! link is down.
//!
//! May use: `virtio`, the ioctls of TAP and vhost-net, smoltcp.
//!
//! Threads: the device's own event loop runs its queues; vCPUs read configuration, activate and
//! reset it; other threads use a [`NetHandle`].
//!
//! - `protocol.rs`: the wire
//! - `link.rs`: the host's side, of one kind or the other
//! - `tap.rs`: a TAP interface
//! - `stream.rs`: frames over a stream socket
//! - `receiver.rs`, `transmitter.rs`: one direction each
//! - `pair.rs`: one of each
//! - `vhost_net.rs`: the host's kernel in place of these two
//! - `control_queue.rs`: the control queue
//! - `responder.rs`: services inside the monitor that answer on this interface
//! - `tcp_service/`: such a service over TCP
//! - `mock.rs`: a guest's TCP, for tests
//! - `device.rs`: the device
//! - `handle.rs`: limits changed and counters read from other threads

mod control_queue;
mod device;
mod handle;
mod link;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
mod pair;
pub mod protocol;
mod receiver;
mod responder;
mod stream;
mod tap;
mod tcp_service;
#[cfg(test)]
mod tests;
mod transmitter;
mod vhost_net;

pub use device::Net;
pub use handle::{NetCounters, NetHandle};
pub use link::Link;
pub use responder::Responder;
pub use stream::{FrameStream, StreamEnd};
pub use tap::{Tap, TapError};
pub use tcp_service::{Exchange, MAX_REQUEST, Service, TcpCounters, TcpService};
pub use vhost_net::{VhostError, VhostNet};

use crate::virtio::RateLimiter;

/// Most queue pairs of one device.
pub const MAX_PAIRS: u16 = 8;

/// Configuration of a network device.
pub struct NetConfig {
    /// The host's side, 1 to [`MAX_PAIRS`] links of one kind: the queues of a TAP, or a stream. The
    /// device has as many pairs of queues.
    pub links: Vec<Link>,
    /// Address that the device offers the guest; without one the guest makes one up.
    pub mac: Option<[u8; 6]>,
    /// Largest packet without its frame's header that the device announces.
    pub mtu: Option<u16>,
    /// Limits on traffic to the guest.
    pub rx_limiter: RateLimiter,
    /// Limits on traffic from the guest.
    pub tx_limiter: RateLimiter,
    /// A service that answers on this interface.
    pub responder: Option<Box<dyn Responder>>,
    /// The host's kernel, to move the frames of a TAP in place of this device: then there can be
    /// neither limits nor a responder.
    pub vhost: Option<VhostNet>,
}
