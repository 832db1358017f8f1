// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-gpu without rendering (virtio 1.3, 5.7): 2D resources, blobs, scanouts, cursors, and
//! guest pages that move while they are in use.
//!
//! The guest draws in its own memory. A 2D resource is copied to the host by transfers, and only
//! the damaged rectangle of it. A guest-memory blob is never copied: a display reads it in place,
//! when somebody looks. Both have guest pages behind them, and those pages stay movable: by
//! RESOURCE_MIGRATE_BACKING the guest asks the device, which is the only one that can hold its own
//! readers back, to copy a page and use the copy from then on (docs/gpu.md has a picture).
//!
//! ```text
//!   queue ── Segments ── protocol ── Command ── Engine ── Result<Response, Fault> ── response
//!                                                 │
//!        resource ── backing (guest runs)  host_memory (budget)  window ── HostWindow (monitor)
//!        scanout ─── Display
//! ```
//!
//! Everything a guest can make grow has a limit ([`Limits`]): resources, entries of one backing,
//! runs of all backings (by the size of its RAM), host memory. At a limit the standard's
//! OUT_OF_MEMORY is answered, and what the guest unrefs is free again.
//!
//! May use: `mm`, `crate::virtio`, `crate::display`; no KVM, no HTTP.
//!
//! - `protocol.rs`, `response.rs`: wire structures; decoding, encoding, errors by cause
//! - `device.rs`: [`Gpu`], the queues and the configuration space
//! - `engine.rs`, `ops/`: the one dispatch, and the commands it leads to
//! - `resource.rs`, `backing.rs`, `host_memory.rs`, `window.rs`: what a guest made, and where it is
//! - `migrate.rs`: pages of a backing that move
//! - `scanout.rs`, `edid.rs`, `format.rs`: modes, surfaces and pixels
//! - `fence.rs`, `uuid.rs`, `stats.rs`: what their names say
//! - `driver.rs` (feature `test-utils`): the guest's side, for tests, benches and fuzzing

mod backing;
mod device;
#[cfg(any(test, feature = "test-utils"))]
pub mod driver;
mod edid;
mod engine;
mod fence;
mod format;
mod host_memory;
mod migrate;
mod ops;
pub mod protocol;
mod resource;
mod response;
mod scanout;
mod stats;
#[cfg(test)]
mod tests;
mod uuid;
mod window;

pub use device::{CONTROL_QUEUE, CURSOR_QUEUE, Gpu, ModeError};
pub use edid::{MAX_EXTENT, MIN_EXTENT};
pub use engine::WantsBlocks;
pub use format::PixelFormat;
pub use host_memory::{
    AnonymousMemory, HostMemory, HostRegion, HostWindow, OutOfHostMemory, WindowError,
};
use mm::units::GuestRange;
pub use response::{error, ok};
pub use stats::{Counters, GpuStats, KindStats};

use crate::display::{Display, Size};
use crate::virtio::SharedRegion;

/// What a guest may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Resources at a time. A guest that fills its memory with buffers of a page each has one for
    /// each page of it.
    pub resources: usize,
    /// Entries of one backing: 2^18 are 1 GiB in single pages.
    pub entries_per_resource: u32,
    /// Bytes of host memory: images of 2D resources, and host blobs.
    pub host_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { resources: 1 << 20, entries_per_resource: 1 << 18, host_bytes: 256 << 20 }
    }
}

/// What a device is to be.
#[derive(Debug, Clone)]
pub struct GpuSettings {
    /// Number of scanouts, 1 to 16.
    pub scanouts: usize,
    /// Mode of each scanout at first, in pixels.
    pub mode: Size,
    /// What the guest may take.
    pub limits: Limits,
    /// Where the host-visible window is; none without a [`GpuParts::window`].
    pub window: Option<SharedRegion>,
    /// CMA regions of the guest, for the statistics.
    pub cma: Vec<GuestRange>,
}

/// How a device reaches what is outside it.
pub struct GpuParts {
    /// Where images and host blobs come from.
    pub host_memory: Box<dyn HostMemory>,
    /// How host blobs get into the guest.
    pub window: Option<Box<dyn HostWindow>>,
    /// Where scanouts are shown.
    pub display: Box<dyn Display>,
}
