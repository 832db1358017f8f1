// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scanouts: their modes, what they show, and how its pixels are read where they are.

use super::format::{BYTES_PER_PIXEL, PixelFormat};
use super::protocol::{MAX_SCANOUTS, ResourceId};
use super::resource::Resource;
use super::response::DisplayOne;
use crate::display::{Cursor, Pixels, Rect, ScanoutId, Size};
use crate::virtio::GuestMemory;

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
        let row = u64::from(self.size.width) * u64::from(BYTES_PER_PIXEL);
        let Some(rows_before_last) = u64::from(self.size.height).checked_sub(1) else {
            return false;
        };
        let end = rows_before_last
            .checked_mul(self.stride)
            .and_then(|start| start.checked_add(self.offset))
            .and_then(|start| start.checked_add(row));
        row != 0 && self.stride >= row && end.is_some_and(|end| end <= bytes)
    }
}

/// What a scanout shows: a part of a framebuffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Surface {
    /// In which resource it is.
    pub resource: ResourceId,
    /// How it lies there.
    pub layout: Layout,
    /// Which part of it is shown; it fits.
    pub rect: Rect,
}

/// One scanout.
#[derive(Debug, Default)]
pub(super) struct Scanout {
    /// The mode that is announced to the guest; none when nothing is plugged in.
    pub mode: Option<Size>,
    /// What the guest has put on it.
    pub surface: Option<Surface>,
    /// Its cursor.
    pub cursor: Cursor,
}

/// The scanouts of a device.
#[derive(Debug)]
pub(super) struct Scanouts(Vec<Scanout>);

impl Scanouts {
    /// `count` scanouts, at most [`MAX_SCANOUTS`], each with `mode`.
    pub(super) fn new(count: usize, mode: Size) -> Self {
        let scanout = || Scanout { mode: Some(mode), ..Scanout::default() };
        Self((0..count.min(MAX_SCANOUTS)).map(|_| scanout()).collect())
    }

    /// Their number.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The scanout that a guest or a person names, and its checked number.
    pub(super) fn find(&mut self, raw: u32) -> Option<(ScanoutId, &mut Scanout)> {
        let id = ScanoutId::new(raw)?;
        Some((id, self.0.get_mut(id.index())?))
    }

    /// One of them.
    pub(super) fn get(&self, id: ScanoutId) -> Option<&Scanout> {
        self.0.get(id.index())
    }

    /// All, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ScanoutId, &Scanout)> {
        (0..).map_while(ScanoutId::new).zip(&self.0)
    }

    /// All, in order, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ScanoutId, &mut Scanout)> {
        (0..).map_while(ScanoutId::new).zip(&mut self.0)
    }

    /// The answer to GET_DISPLAY_INFO: scanouts stand side by side.
    pub(super) fn display_info(&self) -> [DisplayOne; MAX_SCANOUTS] {
        let mut info = [DisplayOne::default(); MAX_SCANOUTS];
        let mut x = 0;
        for (one, scanout) in info.iter_mut().zip(&self.0) {
            let Some(mode) = scanout.mode else { continue };
            *one = DisplayOne { rect: Rect::new(x, 0, mode.width, mode.height), enabled: true };
            x += mode.width;
        }
        info
    }
}

/// The pixels of a surface, for a display.
pub(super) struct View<'a> {
    /// Guest RAM.
    pub mem: &'a GuestMemory,
    /// The surface's resource.
    pub resource: &'a Resource,
    /// The surface.
    pub surface: &'a Surface,
}

impl View<'_> {
    /// Reads bytes of the resource, or black where they are gone.
    fn read(&self, at: u64, out: &mut [u8]) {
        if !self.resource.read(self.mem, at, out) {
            out.fill(0);
        }
        self.surface.layout.format.to_bgra(out);
    }
}

impl Pixels for View<'_> {
    fn size(&self) -> Size {
        self.surface.rect.size()
    }

    fn copy(&self, rect: Rect, out: &mut [u8], stride: usize) {
        let Surface { layout, rect: shown, .. } = *self.surface;
        let pixel = u64::from(BYTES_PER_PIXEL);
        let row = rect.width as usize * pixel as usize;
        let (x, y) = (u64::from(shown.x + rect.x), u64::from(shown.y + rect.y));
        let first = layout.offset + y * layout.stride + x * pixel;
        if row == stride && layout.stride == row as u64 {
            // Rows follow each other on both sides: one read, however many rows.
            return self.read(first, &mut out[..row * rect.height as usize]);
        }
        for (y, line) in out.chunks_mut(stride).take(rect.height as usize).enumerate() {
            self.read(first + y as u64 * layout.stride, &mut line[..row]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(width: u32, height: u32, offset: u64, stride: u64) -> Layout {
        Layout { format: PixelFormat::B8G8R8X8, offset, stride, size: Size::new(width, height) }
    }

    #[test]
    fn a_layout_fits_to_its_last_byte() {
        assert!(layout(10, 4, 8, 48).fits(8 + 3 * 48 + 40));
        assert!(!layout(10, 4, 8, 48).fits(8 + 3 * 48 + 39));
        assert!(!layout(10, 4, 0, 39).fits(u64::MAX));
        assert!(!layout(0, 4, 0, 64).fits(u64::MAX));
        assert!(!layout(4, 0, 0, 64).fits(u64::MAX));
    }

    #[test]
    fn a_layout_that_overflows_does_not_fit() {
        assert!(!layout(1, u32::MAX, u64::MAX, 4).fits(u64::MAX));
        assert!(!layout(1, u32::MAX, 0, u64::MAX).fits(u64::MAX));
        assert!(!layout(u32::MAX, 2, u64::MAX - 8, u64::MAX / 2).fits(u64::MAX));
    }

    #[test]
    fn scanouts_stand_side_by_side_and_unplugged_ones_take_no_room() {
        let mut scanouts = Scanouts::new(3, Size::new(640, 480));
        scanouts.find(1).unwrap().1.mode = None;
        let info = scanouts.display_info();
        assert_eq!(info[0].rect, Rect::new(0, 0, 640, 480));
        assert_eq!(info[1], DisplayOne::default());
        assert_eq!(info[2].rect, Rect::new(640, 0, 640, 480));
        assert!(info[3..].iter().all(|one| !one.enabled));
        assert!(scanouts.find(3).is_none() && scanouts.find(u32::MAX).is_none());
    }
}
