// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device (virtio 1.3, 5.2): a file, a host block device or a qcow2 image as a disk.
//!
//! A request is read from its descriptors, checked against the disk, and moved piece by piece
//! between the image and the guest's own pages by an `engine`; nothing is copied on the way but
//! with qcow2.
//!
//! ```text
//! queue ─▶ request ─▶ transfer ─▶ engine (io_uring | system calls | qcow2) ─▶ image
//!   ▲                    │ ▲            │
//!   └─── status byte ────┘ └── piece ◀──┘
//! ```
//!
//! Nothing that a guest asks for is unbounded: a request is as many descriptors as its queue is
//! deep, a piece a few MiB, a round of processing ends at its deadline.
//!
//! The driver may take a write for durable once a later flush has returned, if it has negotiated
//! FLUSH; the device then calls fdatasync(2) for the flush. A driver that knows no FLUSH gets the
//! same after each write. With [`CacheType::Unsafe`] neither happens.
//!
//! Memory: buffers are guest pages, which stay mapped for as long as a request holds them. A reset
//! waits for all requests under way, as their buffers are the driver's again afterwards.
//!
//! May use: `virtio`, io_uring, imago.
//!
//! Threads: the device's own event loop runs its queues; vCPUs read configuration, activate and
//! reset it; other threads use a [`BlockHandle`], which takes no lock that is held across I/O.
//!
//! - `protocol.rs`: the wire
//! - `image.rs`: what is behind the disk, and the lock on it
//! - `request.rs`: a request taken from its descriptors and checked
//! - `transfer.rs`: requests under way
//! - `engine/`: ways to move data between an image and memory
//! - `device/`: the device
//! - `handle.rs`: images and limits changed, counters read, from other threads

mod device;
mod engine;
mod handle;
mod image;
pub mod protocol;
mod request;
#[cfg(test)]
mod tests;
mod transfer;

pub use device::Block;
pub use handle::{BlockHandle, Counters, ReplaceError};
pub use image::{Image, ImageError};

use crate::virtio::RateLimiter;

/// What becomes of data that the guest has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Flushes are not offered: data is safe when the host has written it, whenever that is.
    #[default]
    Unsafe,
    /// The driver flushes, and the device does not answer before the data is on the disk.
    Writeback,
}

/// How data is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoEngine {
    /// By system calls that wait.
    Sync,
    /// By io_uring, and by system calls where the host does not permit it.
    #[default]
    Async,
}

/// What a block device is made with.
#[derive(Debug)]
pub struct BlockConfig {
    /// Its contents.
    pub image: Image,
    /// What becomes of written data.
    pub cache: CacheType,
    /// How data is moved.
    pub engine: IoEngine,
    /// Limits of bytes and requests.
    pub limiter: RateLimiter,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

/// Most request queues of one device.
pub const MAX_QUEUES: u16 = 16;
