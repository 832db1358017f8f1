// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket device (virtio 1.3, 5.10): streams between programs in the guest and programs on the
//! host, by Unix sockets with Firecracker's conventions.
//!
//! - From the host: connect to the device's socket and write `CONNECT PORT\n`. Once the guest has
//!   accepted, the device sends the line `OK HOST_PORT\n`; further bytes belong to the stream.
//! - From the guest: a connection to port P of CID 2 becomes one to the Unix socket `PATH_P`.
//!
//! ```text
//! transmit queue ─▶ muxer ─▶ connection ─▶ Unix socket      guest memory ─▶ socket: one call
//! receive queue  ◀─ muxer ◀─ connection ◀─ Unix socket      socket ─▶ guest memory: one call for
//!                                                           as many packets as it has data for
//! ```
//!
//! Credit (5.10.6.3): the guest may send as much as the connection's buffer has room for, and gets
//! updates as it drains; the device sends at most the guest's credit. A packet beyond its
//! credit, for a connection that is not there, or that makes no sense is answered with a reset.
//!
//! Bounded: connections ([`MAX_CONNECTIONS`]), bytes held for the host ([`MAX_BUFFERED`]), replies
//! for which the guest has no buffer (then no more packets are taken from it).
//!
//! May use: `virtio`, Unix sockets; the listening socket is made by the caller.
//!
//! Threads: the device's own event loop runs everything; vCPUs activate and reset it.
//!
//! - `protocol.rs`: the wire
//! - `credit.rs`: how much may be sent, on either side
//! - `greeting.rs`: host programs that have not yet named a port
//! - `buffers.rs`: buffers of the guest's that wait for packets
//! - `connection.rs`: one stream
//! - `stream_table.rs`: all streams
//! - `muxer.rs`: handling of guest packets and host events
//! - `device.rs`: the device
//! - `host_sockets.rs`: the host's sockets and news of them
//! - `handle.rs`: counters for other threads

mod buffers;
mod connection;
mod credit;
mod device;
mod greeting;
mod handle;
mod host_sockets;
mod muxer;
pub mod protocol;
mod stream_table;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

pub use device::Vsock;
pub use handle::{VsockCounters, VsockHandle};

/// Most connections at a time of any device, greetings included.
pub const MAX_CONNECTIONS: usize = 1023;
/// Most bytes that are held for host programs which do not read, in all connections together.
pub const MAX_BUFFERED: usize = 64 << 20;

/// Configuration of a socket device.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's address, 3 or above.
    pub guest_cid: u64,
    /// Where host programs connect; not blocking.
    pub listener: UnixListener,
    /// Most connections at a time, greetings included; at most [`MAX_CONNECTIONS`]. Each has a
    /// descriptor.
    pub max_connections: usize,
    /// Its path: connections from the guest go to this with `_PORT` behind it.
    pub path: PathBuf,
}
