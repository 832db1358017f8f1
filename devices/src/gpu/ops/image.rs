// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! 2D resources: RESOURCE_CREATE_2D, TRANSFER_TO_HOST_2D, RESOURCE_ASSIGN_UUID.

use std::sync::Arc;

use crate::display::{Rect, Size};
use crate::gpu::backing::Backing;
use crate::gpu::engine::{Engine, Guest};
use crate::gpu::format::{BYTES_PER_PIXEL, PixelFormat};
use crate::gpu::host_memory::{Budget, Held, HostRegion};
use crate::gpu::protocol::{Create2d, ResourceId, Transfer};
use crate::gpu::resource::{Image, Kind};
use crate::gpu::response::{Fault, Response};
use crate::virtio::GuestMemory;

impl Engine {
    pub(in crate::gpu) fn create_2d(&mut self, c: &Create2d) -> Result<Response, Fault> {
        let id = c.resource_id.get();
        self.resources.check_new(id)?;
        let format = PixelFormat::from_wire(c.format.get()).ok_or(Fault::Parameter)?;
        let size = Size::new(c.width.get(), c.height.get());
        if size.is_empty() {
            return Err(Fault::Parameter);
        }
        if self.host.never_has(size.bytes()) {
            return Err(Fault::Limit);
        }
        self.resources.insert(id, Kind::Image(Image { format, size, backing: None, pixels: None }));
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn transfer_to_host_2d(
        &mut self,
        guest: Guest<'_>,
        c: &Transfer,
    ) -> Result<Response, Fault> {
        let rect = Rect::from(c.rect);
        let image = match &mut self.resources.get_mut(c.resource_id.get())?.kind {
            Kind::Image(image) => image,
            // Linux sends it for its dumb buffers, whatever they are made of: a guest blob is its
            // own image, so that there is nothing to do.
            Kind::GuestBlob(_) => return Ok(Response::NoData),
            Kind::HostBlob(_) => return Err(Fault::WrongKind),
        };
        if !rect.fits(image.size) {
            return Err(Fault::Parameter);
        }
        let plan = Plan::new(image, rect, c.offset.get())?;
        let pixels = pixels_of(&mut image.pixels, image.size, &mut self.host)?;
        let backing = image.backing.as_ref().ok_or(Fault::WrongState)?;
        if !plan.copy(guest.mem, backing, &pixels) {
            return Err(Fault::Parameter);
        }
        self.counters.transfers += 1;
        self.counters.transfer_bytes += plan.bytes();
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn assign_uuid(&mut self, id: ResourceId) -> Result<Response, Fault> {
        Ok(Response::ResourceUuid(self.uuids.of(self.resources.get(id)?.serial)))
    }
}

/// The host's image, which is taken when it is first needed.
fn pixels_of(
    pixels: &mut Option<Arc<Held>>,
    size: Size,
    host: &mut Budget,
) -> Result<Arc<Held>, Fault> {
    if let Some(pixels) = pixels {
        return Ok(Arc::clone(pixels));
    }
    Ok(Arc::clone(pixels.insert(host.take(size.bytes())?)))
}

/// The copies that a transfer is made of: `count` of `len` bytes, `stride` apart on both sides.
struct Plan {
    from: u64,
    to: u64,
    len: u64,
    stride: u64,
    count: u64,
}

impl Plan {
    /// A plan whose reads all lie in the image's backing.
    fn new(image: &Image, rect: Rect, offset: u64) -> Result<Self, Fault> {
        let backing = image.backing.as_ref().ok_or(Fault::WrongState)?;
        let stride = image.stride();
        let len = u64::from(rect.width) * u64::from(BYTES_PER_PIXEL);
        let rows = u64::from(rect.height);
        // The rectangle lies in the image, which is far below 2^63 bytes.
        let extent = (rows - 1) * stride + len;
        if !backing.holds(offset, extent) {
            return Err(Fault::Parameter);
        }
        let to = u64::from(rect.y) * stride + u64::from(rect.x) * u64::from(BYTES_PER_PIXEL);
        if len == stride {
            return Ok(Self { from: offset, to, len: extent, stride, count: 1 });
        }
        Ok(Self { from: offset, to, len, stride, count: rows })
    }

    fn bytes(&self) -> u64 {
        self.len * self.count
    }

    /// Copies from guest memory to the image, piece by piece, with nothing in between.
    fn copy(&self, mem: &GuestMemory, backing: &Backing, pixels: &Held) -> bool {
        let image = pixels.bytes();
        (0..self.count).all(|row| {
            let (from, to) = (self.from + row * self.stride, self.to + row * self.stride);
            let (Ok(mut to), Ok(len)) = (usize::try_from(to), usize::try_from(self.len)) else {
                return false;
            };
            backing.for_each(mem, from, len, |piece| {
                if let Ok(part) = image.subslice(to, piece.len()) {
                    piece.copy_to_volatile_slice(part);
                }
                to += piece.len();
            })
        })
    }
}
