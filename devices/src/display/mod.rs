// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a scanout is shown.
//!
//! A display device talks to a [`Display`] and does not know which kind it is. Pixels are read in
//! place, from guest memory as a rule, through [`Pixels`]: only by a display that someone watches,
//! only the damaged area, only during the call, and in strips between which other work runs.
//!
//! May use: `mm`, [`crate::virtio::Deadline`] and the standard library; no other part of
//! virtio, no KVM, no HTTP.
//!
//! - `geometry.rs`: [`Extent`], [`Size`], [`Area`] and the unchecked [`Rect`]
//! - `frame.rs`: [`Frame`], pixels that were copied out, and how a cursor is put on them
//! - `headless/`: [`Headless`], a display whose frames viewers read
//! - `png.rs`: a frame as a PNG file
//! - `vnc/`: a live view on a Unix socket

mod frame;
mod geometry;
mod headless;
mod png;
pub mod vnc;

use std::sync::Arc;

pub use frame::{Frame, FrameError, FrameSnapshot};
pub use geometry::{Area, Extent, Rect, Size, WIDE};
pub use headless::{DisplayFrames, Headless, ViewChange, Viewer};
pub use png::{PngError, PngFile, encode_png};

use crate::virtio::{Deadline, Progress};

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

    /// Copies the pixels of `area`, which lies within the size, to `out` as B8G8R8X8: its first row
    /// at the start of `out`, each next one `stride` bytes on. Returns how many rows it has copied
    /// when `deadline` passed: at least one.
    ///
    /// Memory that the guest has removed since then reads as black.
    fn copy(&self, area: Area, out: &mut [u8], stride: usize, deadline: &mut Deadline) -> u32;
}

/// Something that shows scanouts.
///
/// Called with the device's lock held: no call blocks, and those that copy end when their deadline
/// passes and are called again.
pub trait Display: Send {
    /// The scanout shows pictures of that size from now on, or nothing.
    fn set_size(&mut self, scanout: ScanoutId, size: Option<Size>);

    /// Whether a viewer would see a picture. Where not, nothing is copied.
    fn watched(&self, scanout: ScanoutId) -> bool;

    /// Copies missing parts of the scanout's picture; does nothing if it is complete.
    fn fill(
        &mut self,
        scanout: ScanoutId,
        pixels: &dyn Pixels,
        deadline: &mut Deadline,
    ) -> Progress;

    /// The pixels of `damage` changed: copies them, after [missing](Display::fill) ones. Returns
    /// the damage left for the next call.
    fn flush(
        &mut self,
        scanout: ScanoutId,
        damage: Area,
        pixels: &dyn Pixels,
        deadline: &mut Deadline,
    ) -> Option<Area>;

    /// The cursor moved or changed.
    fn set_cursor(&mut self, scanout: ScanoutId, cursor: &Cursor);
}

#[cfg(test)]
pub(crate) mod testing {
    use mm::budget::Budget;

    use super::*;

    /// A picture of one colour.
    pub(crate) struct Plain(pub Size, pub u8);

    impl Pixels for Plain {
        fn size(&self) -> Size {
            self.0
        }

        fn copy(&self, area: Area, out: &mut [u8], stride: usize, deadline: &mut Deadline) -> u32 {
            let mut rows = 0;
            for line in out.chunks_mut(stride).take(area.size.height.into()) {
                line[..4 * usize::from(area.size.width)].fill(self.1);
                deadline.charge(area.size.row_bytes());
                rows += 1;
                if deadline.passed() {
                    break;
                }
            }
            rows
        }
    }

    /// A complete frame of one colour.
    pub(crate) fn frame(size: Size, colour: u8) -> Frame {
        let mut frame = Frame::new(size, &Budget::bytes("test", size.bytes())).unwrap();
        assert_eq!(frame.fill(&Plain(size, colour), &mut Deadline::never()), Progress::Done);
        frame
    }
}
