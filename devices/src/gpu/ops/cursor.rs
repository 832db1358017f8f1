// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mouse pointer: UPDATE_CURSOR, MOVE_CURSOR.
//!
//! An image is copied when it is set: 16 KiB, after which its resource may go or move.

use std::sync::Arc;

use crate::display::{CURSOR_BYTES, CURSOR_EXTENT, Size};
use crate::gpu::engine::{Engine, Guest};
use crate::gpu::format::PixelFormat;
use crate::gpu::protocol::{ResourceId, UpdateCursor};
use crate::gpu::resource::Kind;
use crate::gpu::response::{Fault, Response};
use crate::virtio::GuestMemory;

impl Engine {
    pub(in crate::gpu) fn update_cursor(
        &mut self,
        guest: Guest<'_>,
        c: &UpdateCursor,
    ) -> Result<Response, Fault> {
        self.scanouts.find(c.scanout_id.get()).ok_or(Fault::NoScanout)?;
        let image = match c.resource_id.get() {
            0 => None,
            id => Some(self.cursor_image(guest.mem, id)?),
        };
        let (_, scanout) = self.scanouts.find(c.scanout_id.get()).ok_or(Fault::NoScanout)?;
        scanout.cursor.image = image;
        scanout.cursor.hot_x = c.hot_x.get();
        scanout.cursor.hot_y = c.hot_y.get();
        self.move_cursor(c)
    }

    pub(in crate::gpu) fn move_cursor(&mut self, c: &UpdateCursor) -> Result<Response, Fault> {
        let (id, scanout) = self.scanouts.find(c.scanout_id.get()).ok_or(Fault::NoScanout)?;
        // Linux sends the image's corner, which may be left of or above the screen.
        scanout.cursor.x = c.x.get().cast_signed();
        scanout.cursor.y = c.y.get().cast_signed();
        self.display.set_cursor(id, &scanout.cursor);
        Ok(Response::NoData)
    }

    /// The image in resource `id`: a 2D resource of the right size, or a blob large enough.
    fn cursor_image(
        &self,
        mem: &GuestMemory,
        id: ResourceId,
    ) -> Result<Arc<[u8; CURSOR_BYTES]>, Fault> {
        let resource = self.resources.get(id)?;
        let format = match &resource.kind {
            Kind::Image(image) if image.size != Size::new(CURSOR_EXTENT, CURSOR_EXTENT) => {
                return Err(Fault::Parameter);
            }
            Kind::Image(image) => image.format,
            // Nothing says what is in a blob: what Linux draws cursors in.
            Kind::GuestBlob(_) | Kind::HostBlob(_) => PixelFormat::B8G8R8A8,
        };
        if resource.size() < CURSOR_BYTES as u64 {
            return Err(Fault::Parameter);
        }
        let mut pixels = [0; CURSOR_BYTES];
        if !resource.read(mem, 0, &mut pixels) {
            // A 2D resource that nothing was transferred to yet.
            pixels.fill(0);
        }
        format.to_bgra(&mut pixels);
        if !format.has_alpha() {
            pixels.as_chunks_mut::<4>().0.iter_mut().for_each(|pixel| pixel[3] = u8::MAX);
        }
        Ok(Arc::new(pixels))
    }
}
