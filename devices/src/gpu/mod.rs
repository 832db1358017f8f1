// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-gpu without rendering (virtio 1.3, 5.7): 2D resources, blobs, scanouts, cursors, and
//! guest pages that move while they are in use.
//!
//! The guest draws in its own memory. A 2D resource is copied to the host by transfers, and only
//! the damaged rectangle of it. A guest-memory blob is never copied: a display reads it in place,
//! when it is watched. Both have guest pages behind them, and those pages stay movable: by
//! RESOURCE_MIGRATE_BACKING the guest asks the device, as only it can exclude its own readers, to
//! copy a page and use the copy afterwards (docs/gpu.md has a diagram).
//!
//! ```text
//!   queue ── Segments ── protocol ── Command ── Engine ── Response or Fault ── response
//!                                                 │ ▲
//!                                                 ▼ │ until it is done
//!                                                Job ── cut by the deadline, kept with its queue
//!
//!        resource ── backing (guest runs)  host_memory (budget)  window ── HostWindow (monitor)
//!        scanouts ── Display
//! ```
//!
//! Time: every command that may take long is a job that a [`Deadline`](crate::virtio::Deadline)
//! interrupts: transfers, flushes and migrations at any byte, backings after a strip of entries,
//! the release of host memory after 2 MiB. Between two rounds the other queue, viewers and the
//! monitor can run; each part of the device is then consistent. The longest step that cannot be
//! interrupted is a row of a scanout, or a cursor, in which each byte is a separate run.
//!
//! Budgets: everything that a guest can make grow is charged to one [`mm::budget::Budget`] for host
//! memory: images, host blobs, the records of resources and of runs of backings, and the frames and
//! buffers of viewers; mappings of the window to another. At the limit the device responds with the
//! standard's OUT_OF_MEMORY; unreferenced resources release their charge.
//!
//! May use: `mm`, `crate::virtio`, `crate::display`; no KVM, no HTTP.
//!
//! - `protocol/`, `response.rs`: wire structures; decoding, encoding, errors by cause
//! - `device.rs`: [`Gpu`], the queues and the configuration space
//! - `buffer.rs`: the bytes of a command, and its answer
//! - `command_engine/`, `ops/`: the parts of the device, the one dispatch, and the commands it leads to
//! - `resource.rs`, `resource_backing.rs`, `host_memory.rs`, `window.rs`: what a guest made, and where it is
//! - `migrate.rs`: pages of a backing that move
//! - `scanouts.rs`, `scanout.rs`, `display_mode.rs`, `edid.rs`, `format.rs`: modes, surfaces and pixels
//! - `capture.rs`, `rounds.rs`: pictures; these and walks in rounds, for other threads
//! - `fence.rs`, `uuid.rs`, `stats.rs`, `large.rs`: fences, UUIDs, counters, notes of large buffers
//! - `mock/` (feature `test-utils`): the guest's side, for tests, benches and fuzzing

mod buffer;
mod capture;
mod command_engine;
mod device;
mod display_mode;
mod edid;
mod fence;
mod format;
mod host_memory;
mod large;
mod migrate;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
mod ops;
pub mod protocol;
mod resource;
mod resource_backing;
mod response;
mod rounds;
mod scanout;
mod scanouts;
mod stats;
#[cfg(test)]
mod tests;
mod uuid;
mod window;

use std::sync::Arc;

pub use capture::{Capture, CaptureError};
pub use device::{CONTROL_QUEUE, CURSOR_QUEUE, Gpu};
pub use display_mode::{ModeError, mode};
pub use edid::{MAX_EXTENT, MIN_EXTENT};
pub use format::PixelFormat;
pub use host_memory::{
    AnonymousMemory, HostMemory, HostRegion, HostWindow, OutOfHostMemory, WindowError,
};
pub use large::WantsBlocks;
use mm::budget::Budget;
use mm::units::GuestRange;
pub use response::{error, ok};
pub use rounds::{backing_ranges, capture, refresh};
pub use scanout::MAX_SCANOUT_EXTENT;
pub use stats::{GpuEvents, GpuStats, KindStats};

use crate::display::{Display, Size};
use crate::virtio::SharedRegion;

/// Default limit on host memory for a guest's resources and the viewers of its scanouts, in bytes.
pub const DEFAULT_HOST_BYTES: u64 = 256 << 20;

/// Limits on what a guest can allocate besides host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuLimits {
    /// Limit on resources; each also takes some host memory.
    pub resources: usize,
    /// Entries of one backing: 2^18 are 1 GiB in single pages.
    pub entries_per_resource: u32,
}

impl Default for GpuLimits {
    fn default() -> Self {
        Self { resources: 1 << 20, entries_per_resource: 1 << 18 }
    }
}

/// Settings of a device.
#[derive(Debug, Clone)]
pub struct GpuSettings {
    /// Number of scanouts, 1 to 16.
    pub scanouts: usize,
    /// Mode of each scanout at first, in pixels.
    pub mode: Size,
    /// Limits for the guest.
    pub limits: GpuLimits,
    /// Where the host-visible window is; none without a [`GpuParts::window`].
    pub window: Option<SharedRegion>,
    /// CMA regions of the guest, for the statistics.
    pub cma: Vec<GuestRange>,
}

/// Interfaces of a device to its environment.
pub struct GpuParts {
    /// Source of memory for images and host blobs.
    pub host_memory: Box<dyn HostMemory>,
    /// Window that maps host blobs into the guest.
    pub window: Option<Box<dyn HostWindow>>,
    /// Where scanouts are shown.
    pub display: Box<dyn Display>,
    /// Host memory in bytes that the guest may cause; the same as the display's.
    pub budget: Arc<Budget>,
    /// Mappings of host blobs at a time, counted.
    pub mappings: Arc<Budget>,
}
