// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Common parts of all virtio devices, independent of the transport (virtio 1.3, chapter 2).
//!
//! A device is driven by one transport through [`VirtioDevice`]; it never knows which one:
//!
//! ```text
//!            activate(Ok)                        reset()
//!  inactive ──────────────▶ active ────────────────────────────▶ inactive
//!      │                      │ ▲
//!      │ activate(Err)        │ └── process(queue) Ok: Done, or More to do later
//!      ▼                      ▼ process(queue) Err
//!  DEVICE_NEEDS_RESET ◀───────┘      leaves by reset() only
//! ```
//!
//! Locks: a device sits behind one mutex ([`SharedDevice`]). vCPU threads take it for configuration
//! accesses, activation, reset, and `process` of queues that run at their notification; the thread
//! of the event loop takes it for `process` of all others. The holder has no lock that a vCPU needs
//! for its interrupt handler.
//!
//! Time: no method holds the lock longer than a few milliseconds, for any request of the driver.
//! `process` receives a [`Deadline`]; it keeps unfinished work, returns [`Progress::More`], and
//! continues at the next call. Configuration accesses, activation and reset are short by nature.
//!
//! May use: `mm`, virtio-queue and vm-memory; no KVM, no HTTP.
//!
//! - `chain.rs`: [`Chain`], a chain of descriptors as the driver wrote it
//! - `chain_memory.rs`: [`ChainMemory`], its checked contents by their addresses in this process
//! - `config_space.rs`: reads and writes of configuration space, clipped to its length
//! - `deadline.rs`: [`Deadline`], the end of one round of processing, in time and in work
//! - `hold.rs`: [`LongestHold`], for metrics of locks and loops
//! - `iovecs.rs`: [`IoVecs`], guest memory for system calls that take vectors
//! - `lock.rs`: [`DeviceLock`], the mutex of a device, which records how long it is held
//! - `notify.rs`: [`Interrupt`], how a device reaches its driver
//! - `queues.rs`: [`DeviceQueue`], one queue from the device's side
//! - `ram_view.rs`: where guest memory is in this process
//! - `rate_limiter.rs`: [`RateLimiter`], token buckets for bytes and requests
//! - `rings.rs`: the rings of a queue by their addresses in this process
//! - `runner.rs`: [`Runner`], the event-loop side of a device: queue events to `process`
//! - `segments.rs`: [`Segments`], the checked contents of a descriptor chain
//! - `sources.rs`: [`SourceRunner`], host-side event sources of a device

mod chain;
mod chain_memory;
mod config_space;
mod deadline;
mod hold;
mod iovecs;
mod lock;
mod notify;
mod queues;
mod ram_view;
mod rate_limiter;
mod rings;
mod runner;
mod segments;
mod sources;

use std::any::Any;
use std::sync::Arc;

pub use chain::Chain;
pub use chain_memory::ChainMemory;
pub use config_space::{read_config_slice, write_config_slice};
pub use deadline::{Deadline, Progress};
pub use hold::{Hold, LongestHold, count_cpu_time, counts_cpu_time};
pub use iovecs::IoVecs;
pub use lock::{DeviceLock, Locked};
pub use notify::Interrupt;
pub use queues::{DeviceQueue, QueueError, RingAddresses};
pub use rate_limiter::{BucketConfig, BucketUpdate, RateLimiter};
pub use runner::{QueueHost, Runner};
pub use segments::{ChainError, Segment, Segments};
pub use sources::{EventSource, Readiness, SourceRunner};
use vm_memory::GuestAddress;

/// Guest memory as every device sees it.
pub use mm::guest_ram::GuestMemoryMmap;

/// A device as its transport, the event loop and the control thread share it.
pub type SharedDevice = Arc<DeviceLock<dyn VirtioDevice>>;

/// What a device receives when its driver sets DRIVER_OK.
pub struct Activation {
    /// Guest RAM: every address that the driver names is looked up here.
    pub mem: Arc<GuestMemoryMmap>,
    /// Features that both sides agreed on.
    pub features: u64,
    /// How to reach the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The queues by the number the driver knows them by. One that the driver did not set up is
    /// not [`ready`](DeviceQueue::ready). Which *role* a number has may depend on `features`:
    /// Linux numbers only the queues of negotiated features.
    pub queues: Vec<DeviceQueue>,
}

/// Why a device cannot continue; the transport sets DEVICE_NEEDS_RESET and notifies the driver.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {cause}")]
pub struct DeviceFailure {
    /// Name of the device, as in the log.
    pub device: &'static str,
    /// The driver's fault or the host's error.
    pub cause: String,
}

impl DeviceFailure {
    /// A failure of `device` because of `cause`.
    pub fn new(device: &'static str, cause: impl std::fmt::Display) -> Self {
        Self { device, cause: cause.to_string() }
    }
}

/// A window of guest-physical address space that a device shares (virtio 1.3, 2.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRegion {
    /// Where it begins.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u64,
}

/// One virtio device (virtio 1.3, 2.1 to 2.6), without its transport.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.3, chapter 5).
    fn device_type(&self) -> u32;

    /// Features offered, transport features included (VIRTIO_F_VERSION_1, RING_EVENT_IDX).
    ///
    /// Constant while the device lives: the transport asks once.
    fn features(&self) -> u64;

    /// Largest size of each queue, each a power of two; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The shared-memory region `id`, if the device has it.
    fn shared_region(&self, _id: u8) -> Option<SharedRegion> {
        None
    }

    /// Whether queue `queue` is processed by the vCPU that notifies it, before its write returns,
    /// and not by the event loop. Asked of an inactive device too, before roles are certain: then
    /// it is whether the queue may become one of these.
    fn runs_at_notify(&self, _queue: u16) -> bool {
        false
    }

    /// Whether a queue that [runs at its notification](Self::runs_at_notify) is processed until it is
    /// empty before the notifying write returns, in as many rounds as that takes, with the device's
    /// lock free between them.
    fn finishes_at_notify(&self, _queue: u16) -> bool {
        false
    }

    /// Whether the driver's notifications of queue `queue` go past the monitor: the host's kernel
    /// watches the queue's event and processes the queue, and no event loop does. Constant while the
    /// device lives.
    fn is_offloaded(&self, _queue: u16) -> bool {
        false
    }

    /// The driver has stopped queue `queue` alone; its `DeviceQueue` is not ready any more. Only a
    /// device whose queues are [offloaded](Self::is_offloaded) has something to do: what
    /// [`take_remains`](Self::take_remains) returns next ends all access to the queue when it is
    /// dropped.
    fn stop_queue(&mut self, _queue: u16) {}

    /// Whether the driver may read registers and configuration space without asking the device: after
    /// the driver has started it, each change of its configuration is
    /// [published](Interrupt::publish_config), and none of its fields depends on the time of reading.
    fn publishes_config(&self) -> bool {
        false
    }

    /// Reads configuration space; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space; writes to read-only fields or beyond the end are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready (DRIVER_OK).
    ///
    /// # Errors
    ///
    /// The device cannot work with what the driver has set up: the transport sets
    /// DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure>;

    /// The driver reset the device: all state of the driver's making is dropped.
    ///
    /// Also called on a device that was never activated.
    fn reset(&mut self);

    /// Frees what [`reset`](Self::reset) has dropped, until `deadline` passes. Called after each
    /// reset until it is [`Progress::Done`], with the lock released in between, before the driver
    /// sees that the reset is over. A round that charges no work is waiting for the host, for
    /// example for memory to return to the guest.
    fn clean_up(&mut self, _deadline: &mut Deadline) -> Progress {
        Progress::Done
    }

    /// What [`reset`](Self::reset), [`clean_up`](Self::clean_up), [`stop_queue`](Self::stop_queue) or
    /// a round of processing left that takes long to free, such as lists and bitmaps by the size of
    /// guest RAM, files, or queues that the host's kernel has to leave: the transport drops it with
    /// the lock released, before the driver sees that the reset is over.
    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        None
    }

    /// Processes queue `queue`, which was notified or had remaining work, until it is empty or
    /// `deadline` has passed.
    ///
    /// The device charges its work to `deadline` and checks it at least once per buffer and once
    /// per step of a long command. No step between two checks takes more than 2 ms; a longer
    /// command is kept as state of the device and resumed. Buffers are returned in the order that
    /// the protocol requires, even if a round was interrupted. A reset drops an unfinished command
    /// without leftovers.
    ///
    /// On [`Progress::More`] the transport signals the queue's event, so that the event loop
    /// returns to it after others, also for a queue that [runs at its
    /// notification](Self::runs_at_notify), unless it is to [finish](Self::finishes_at_notify)
    /// there.
    ///
    /// Only `queue` is notified again. For another queue with remaining work, such as one held back
    /// by the rate limit, the device calls [`DeviceQueue::kick_self`], and the queue gets its own
    /// round.
    ///
    /// A notification may come late: for a queue that is not ready, or after a reset. Neither is
    /// an error.
    ///
    /// # Errors
    ///
    /// [`DeviceFailure`] when the queue's rings cannot be used: the device needs a reset.
    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure>;
}
