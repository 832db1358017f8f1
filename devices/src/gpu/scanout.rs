// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The surface on a scanout, and reading its pixels in place.

use super::format::{BYTES_PER_PIXEL, PixelFormat};
use super::protocol::ResourceId;
use super::resource::{Resource, ResourceKind};
use crate::display::{Area, Pixels, Rect, Size, WIDE};
use crate::gpu::response::Fault;
use crate::virtio::{Deadline, GuestMemoryMmap};

/// Maximum width and height of a surface, in pixels.
pub const MAX_SCANOUT_EXTENT: u16 = 8192;

/// Bytes read between two checks of the deadline, as many as [`WIDE`] pixels have. In the worst case
/// each byte is a separate run of the backing.
const STEP: u64 = WIDE as u64 * BYTES_PER_PIXEL as u64;

/// How the pixels of a framebuffer lie in its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Pixel format.
    pub format: PixelFormat,
    /// Offset of the first pixel.
    pub offset: u64,
    /// Bytes from row to row.
    pub stride: u64,
    /// Size of the framebuffer.
    pub size: Size,
}

impl Layout {
    /// True when rows do not overlap and every pixel lies within `bytes` bytes.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        let row = self.size.row_bytes();
        let end = (u64::from(self.size.height) - 1)
            .checked_mul(self.stride)
            .and_then(|start| start.checked_add(self.offset))
            .and_then(|start| start.checked_add(row));
        self.stride >= row && end.is_some_and(|end| end <= bytes)
    }
}

/// What a scanout shows: a part of a framebuffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Surface {
    /// In which resource it is.
    pub resource: ResourceId,
    /// How it lies there.
    pub layout: Layout,
    /// Which part of it is shown; it lies within the layout's size.
    pub area: Area,
}

impl Surface {
    /// The part `rect` of the framebuffer in `resource`, number `id`, with the given `layout`.
    pub(super) fn new(
        id: ResourceId,
        resource: &Resource,
        layout: Layout,
        rect: Rect,
    ) -> Result<Self, Fault> {
        let area = rect.within(layout.size).ok_or(Fault::Parameter)?;
        let cap = |extent: crate::display::Extent| extent.get() <= MAX_SCANOUT_EXTENT;
        if !layout.fits(resource.size()) || !cap(area.size.width) || !cap(area.size.height) {
            return Err(Fault::Parameter);
        }
        Ok(Self { resource: id, layout, area })
    }

    /// The layout of an image in its memory.
    pub(super) fn layout_of_image(resource: &Resource) -> Result<Layout, Fault> {
        match &resource.kind {
            ResourceKind::Image(image) => Ok(Layout {
                format: image.format,
                offset: 0,
                stride: image.size.row_bytes(),
                size: image.size,
            }),
            // A blob's format and size come from SET_SCANOUT_BLOB.
            ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => Err(Fault::WrongKind),
        }
    }
}

/// The pixels of a surface, for a display.
pub(super) struct ScanoutView<'a> {
    /// Guest RAM.
    pub mem: &'a GuestMemoryMmap,
    /// The surface's resource.
    pub resource: &'a Resource,
    /// The surface.
    pub surface: &'a Surface,
}

impl ScanoutView<'_> {
    /// Reads bytes of the resource; missing bytes are black.
    fn read(&self, at: u64, out: &mut [u8], deadline: &mut Deadline) {
        if !self.resource.read(self.mem, at, out, deadline) {
            out.fill(0);
        }
        self.surface.layout.format.to_bgra(out);
    }
}

impl Pixels for ScanoutView<'_> {
    fn size(&self) -> Size {
        self.surface.area.size
    }

    fn copy(&self, area: Area, out: &mut [u8], stride: usize, deadline: &mut Deadline) -> u32 {
        let Surface { layout, area: shown, .. } = *self.surface;
        let row = area.size.row_bytes();
        let (x, y) =
            (u64::from(shown.x) + u64::from(area.x), u64::from(shown.y) + u64::from(area.y));
        let first = layout.offset + y * layout.stride + x * u64::from(BYTES_PER_PIXEL);
        // Where rows follow each other on both sides, several are one read.
        let together = row == stride as u64 && layout.stride == row;
        let mut left = Some(area);
        let mut done = 0u32;
        while let Some(rest) = left {
            let rows = if together { (STEP / row) as u32 } else { 1 };
            let (step, rest) = rest.split_rows(rows);
            let rows = u32::from(step.size.height);
            let from = done as usize * stride;
            let len = 4 * usize::from(step.size.width) * rows as usize;
            self.read(
                first + u64::from(done) * layout.stride,
                &mut out[from..from + len],
                deadline,
            );
            (left, done) = (rest, done + rows);
            if deadline.passed() {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(width: u16, height: u16, offset: u64, stride: u64) -> Layout {
        Layout { format: PixelFormat::B8G8R8X8, offset, stride, size: Size::new(width, height) }
    }

    #[test]
    fn a_layout_fits_to_its_last_byte() {
        assert!(layout(10, 4, 8, 48).fits(8 + 3 * 48 + 40));
        assert!(!layout(10, 4, 8, 48).fits(8 + 3 * 48 + 39));
        assert!(!layout(10, 4, 0, 39).fits(u64::MAX));
    }

    #[test]
    fn a_layout_that_overflows_does_not_fit() {
        assert!(!layout(1, u16::MAX, u64::MAX, 4).fits(u64::MAX));
        assert!(!layout(1, u16::MAX, 0, u64::MAX).fits(u64::MAX));
        assert!(!layout(u16::MAX, 2, u64::MAX - 8, u64::MAX / 2).fits(u64::MAX));
    }
}
