// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a scanout is shown.
//!
//! A display device talks to a [`Display`]; which kind it is, the device does not know. Pixels are
//! read in place, from guest memory as a rule, through [`Pixels`]: only by a display that someone
//! looks at, only the damaged rectangle, and only during the call.
//!
//! May use: `mm` and the standard library; no virtio, no KVM, no HTTP.
//!
//! - `geometry.rs`: [`Size`] and [`Rect`]
//! - `frame.rs`: [`Frame`], pixels that were copied out, and how a cursor is put on them
//! - `headless.rs`: [`Headless`], frames for whoever asks
//! - `png.rs`: a frame as a PNG file
//! - `vnc/`: a live view on a Unix socket

mod frame;
mod geometry;
mod headless;
mod png;
pub mod vnc;

use std::sync::Arc;

pub use frame::{Frame, Snapshot};
pub use geometry::{Rect, Size};
pub use headless::{Change, Frames, Headless, Viewer};
pub use png::{PngError, encode_png};

/// Most scanouts that there can be (VIRTIO_GPU_MAX_SCANOUTS).
pub const MAX_SCANOUTS: usize = 16;

/// Pixels in a row, and rows, of a cursor (virtio 1.3, 5.7.6.10).
pub const CURSOR_EXTENT: u32 = 64;

/// Bytes of a cursor's image.
pub const CURSOR_BYTES: usize = 4 * (CURSOR_EXTENT * CURSOR_EXTENT) as usize;

/// Number of a scanout, below [`MAX_SCANOUTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScanoutId(u8);

impl ScanoutId {
    /// Scanout number `raw`, if there can be one.
    pub fn new(raw: u32) -> Option<Self> {
        u8::try_from(raw).ok().filter(|id| usize::from(*id) < MAX_SCANOUTS).map(Self)
    }

    /// Its place in a list of scanouts.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for ScanoutId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A mouse pointer and its image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Column of the image's left edge; it may lie outside the scanout.
    pub x: i32,
    /// Row of the image's top edge.
    pub y: i32,
    /// Column of the image that points.
    pub hot_x: u32,
    /// Row of the image that points.
    pub hot_y: u32,
    /// [`CURSOR_EXTENT`] rows of B8G8R8A8, colours multiplied by alpha; none when hidden.
    pub image: Option<Arc<[u8; CURSOR_BYTES]>>,
}

/// The pixels of a scanout, where the guest has them.
pub trait Pixels {
    /// Size of the scanout.
    fn size(&self) -> Size;

    /// Copies the pixels of `rect`, which [fits](Rect::fits), to `out` as B8G8R8X8: its first row
    /// at the start of `out`, each next one `stride` bytes on.
    ///
    /// What the guest has taken away meanwhile reads as black.
    fn copy(&self, rect: Rect, out: &mut [u8], stride: usize);
}

/// Something that shows scanouts.
///
/// Called under the device's lock: no call may block or draw out.
pub trait Display: Send {
    /// The scanout shows pictures of that size from now on, or nothing.
    fn set_size(&mut self, scanout: ScanoutId, size: Option<Size>);

    /// Whether anybody would see a picture. Where not, flushes are not passed on.
    fn watched(&self, scanout: ScanoutId) -> bool;

    /// The pixels of `damage` changed.
    fn flush(&mut self, scanout: ScanoutId, damage: Rect, pixels: &dyn Pixels);

    /// The cursor moved or changed.
    fn set_cursor(&mut self, scanout: ScanoutId, cursor: &Cursor);
}
