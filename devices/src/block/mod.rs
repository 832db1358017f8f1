// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device (virtio 1.3, 5.2): a file, a host block device or a qcow2 image as a disk.
//!
//! A request is read from its descriptors, checked against the disk, and moved piece by piece
//! between the image and the guest's own pages by a `disk_engine`; without a copy except for qcow2.
//!
//! ```text
//! queue ─▶ request ─▶ transfer ─▶ engine (io_uring | system calls | qcow2) ─▶ image
//!   ▲                    │ ▲            │
//!   └─── status byte ────┘ └── piece ◀──┘
//! ```
//!
//! Everything a guest can request is bounded: a request has at most as many descriptors as its
//! queue has entries, a piece has a few MiB, and a round ends at its deadline.
//!
//! With FLUSH negotiated, a write is durable once a later flush has completed: the device calls
//! fdatasync(2) for the flush. Without FLUSH, it does so after each write. With
//! [`CacheType::Unsafe`] neither happens.
//!
//! Memory: buffers are guest pages, which stay mapped while a request holds them. A reset waits for
//! all requests in flight, as their buffers belong to the driver again afterwards.
//!
//! May use: `virtio`, io_uring, imago.
//!
//! Threads: the device's own event loop runs its queues; vCPUs read configuration, activate and
//! reset it; other threads use a [`BlockHandle`], which takes no lock that is held across I/O.
//!
//! - `protocol.rs`: the wire
//! - `image.rs`: the image and its lock
//! - `request.rs`: a request taken from its descriptors and checked
//! - `transfer.rs`: requests in flight
//! - `disk_engine/`: ways to move data between an image and memory
//! - `device/`: the device
//! - `handle.rs`: images and limits changed, counters read, from other threads

mod device;
mod disk_engine;
mod handle;
mod image;
pub mod protocol;
mod request;
#[cfg(test)]
mod tests;
mod transfer;

pub use device::BlockDevice;
pub use handle::{BlockCounters, BlockHandle, ReplaceError};
pub use image::{DiskImage, ImageError};

use crate::virtio::RateLimiter;

/// Whether the guest's flushes reach the disk.
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

/// Configuration of a block device.
#[derive(Debug)]
pub struct BlockConfig {
    /// Its contents.
    pub image: DiskImage,
    /// Whether flushes reach the disk.
    pub cache: CacheType,
    /// How data is moved.
    pub engine: IoEngine,
    /// Limits of bytes and requests.
    pub limiter: RateLimiter,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Most threads of the host's that work for the engine `Async`; 1 or more.
    pub workers: u16,
}

/// Most request queues of one device.
pub const MAX_QUEUES: u16 = 16;
