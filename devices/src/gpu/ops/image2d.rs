// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! 2D resources: RESOURCE_CREATE_2D, TRANSFER_TO_HOST_2D, RESOURCE_DETACH_BACKING.

use std::sync::Arc;

use mm::units::usize_from;

use crate::display::{Area, Rect, Size};
use crate::gpu::format::{BYTES_PER_PIXEL, PixelFormat};
use crate::gpu::host_memory::{Held, HostPool, HostRegion};
use crate::gpu::protocol::{Create2d, ResourceId, TransferToHost};
use crate::gpu::resource::{Backed, ResourceImage, ResourceKind, ResourceTable};
use crate::gpu::response::Fault;
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// RESOURCE_CREATE_2D: an image without backing.
pub(in crate::gpu) fn create_2d(
    resources: &mut ResourceTable,
    host: &HostPool,
    c: &Create2d,
) -> Result<(), Fault> {
    let id = c.resource_id.get();
    let place = resources.reserve(id)?;
    let format = PixelFormat::from_wire(c.format.get()).ok_or(Fault::Parameter)?;
    let size = Size::checked(c.width.get(), c.height.get()).ok_or(Fault::Parameter)?;
    if host.never_has(size.bytes()) {
        return Err(Fault::Limit);
    }
    resources.insert(
        place,
        ResourceKind::Image(ResourceImage { format, size, backed: None, pixels: None }),
    );
    Ok(())
}

/// RESOURCE_DETACH_BACKING; returns the backing, to be freed.
pub(in crate::gpu) fn detach_backing(
    resources: &mut ResourceTable,
    id: ResourceId,
) -> Result<Backed, Fault> {
    resources
        .with_image(id, |image: &mut ResourceImage| image.backed.take().ok_or(Fault::WrongState))
}

/// A TRANSFER_TO_HOST_2D in progress: copies rows directly from guest memory to the image.
pub(in crate::gpu) struct TransferJob {
    id: ResourceId,
    /// Offset of the first row in the backing, and in the image.
    from: u64,
    to: u64,
    /// Bytes of a row, and from row to row on both sides.
    len: u64,
    stride: u64,
    rows: u64,
    /// Where it goes on.
    row: u64,
    in_row: u64,
}

impl TransferJob {
    /// Checks the command; `None` where there is nothing to copy.
    pub(in crate::gpu) fn new(
        resources: &mut ResourceTable,
        host: &mut HostPool,
        c: &TransferToHost,
    ) -> Result<Option<Self>, Fault> {
        let id = c.resource_id.get();
        let image = match &resources.get(id)?.kind {
            ResourceKind::Image(image) => image,
            // Linux sends it for all dumb buffers, blobs included: a guest blob is its own image,
            // so there is nothing to do.
            ResourceKind::GuestBlob(_) => return Ok(None),
            ResourceKind::HostBlob(_) => return Err(Fault::WrongKind),
        };
        let size = image.size;
        let area = Rect::from(c.rect).within(size).ok_or(Fault::Parameter)?;
        let backed = image.backed.as_ref().ok_or(Fault::WrongState)?;
        let job = Self::plan(id, size, area, c.offset.get());
        if !backed.backing.holds(job.from, (job.rows - 1) * job.stride + job.len) {
            return Err(Fault::Parameter);
        }
        if image.pixels.is_none() {
            // The host's image is taken when it is first needed.
            let pixels = host.take(size.bytes())?;
            resources.with_image(id, |image| {
                image.pixels = Some(pixels);
                Ok(())
            })?;
        }
        Ok(Some(job))
    }

    fn plan(id: ResourceId, size: Size, area: Area, from: u64) -> Self {
        let stride = size.row_bytes();
        let len = area.size.row_bytes();
        let rows = u64::from(area.size.height);
        let to = u64::from(area.y) * stride + u64::from(area.x) * u64::from(BYTES_PER_PIXEL);
        // Whole rows follow each other on both sides: they are one.
        let (len, rows) = if len == stride { (len * rows, 1) } else { (len, rows) };
        Self { id, from, to, len, stride, rows, row: 0, in_row: 0 }
    }

    /// Bytes to copy.
    pub(in crate::gpu) fn bytes(&self) -> u64 {
        self.len * self.rows
    }

    /// Copies until all is done or `deadline` passes.
    pub(in crate::gpu) fn run(
        &mut self,
        resources: &ResourceTable,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        let image = resources.image(self.id)?;
        let backed = image.backed.as_ref().ok_or(Fault::WrongState)?;
        let pixels: &Arc<Held> = image.pixels.as_ref().ok_or(Fault::WrongState)?;
        let pixels = pixels.bytes();
        while self.row < self.rows {
            let at = self.row * self.stride + self.in_row;
            let mut to = usize_from(self.to + at);
            let rest = self.len - self.in_row;
            let done = backed.backing.for_each(mem, self.from + at, rest, deadline, |piece| {
                if let Ok(part) = pixels.subslice(to, piece.len()) {
                    piece.copy_to_volatile_slice(part);
                }
                to += piece.len();
            });
            self.in_row += done.ok_or(Fault::Parameter)?;
            if self.in_row == self.len {
                (self.row, self.in_row) = (self.row + 1, 0);
            }
            if deadline.passed() {
                return Ok(Progress::more_if(self.row < self.rows));
            }
        }
        Ok(Progress::Done)
    }
}
