// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UPDATE_CURSOR: the image and the place of the mouse pointer.
//!
//! The image is copied when it is set: 16 KiB, after which its resource may go or move. Each byte may
//! be a separate run of the resource's backing, so it is copied in strips.

use std::sync::Arc;

use crate::display::{CURSOR_BYTES, CURSOR_EXTENT, ScanoutId, Size};
use crate::gpu::format::PixelFormat;
use crate::gpu::protocol::{ResourceId, UpdateCursor};
use crate::gpu::resource::{Resource, ResourceKind, ResourceTable};
use crate::gpu::response::Fault;
use crate::gpu::scanouts::{CursorImage, Scanouts};
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// Size of a cursor's image.
const SIZE: Size = Size::new(CURSOR_EXTENT as u16, CURSOR_EXTENT as u16);
/// Bytes copied between two looks at the deadline.
const STRIP: usize = 2 << 10;

/// An UPDATE_CURSOR in progress.
pub(in crate::gpu) struct CursorJob {
    scanout: ScanoutId,
    image: Option<Reading>,
    hot: (u32, u32),
    at: (i32, i32),
}

/// An image that is being copied.
struct Reading {
    resource: ResourceId,
    pixels: Box<[u8; CURSOR_BYTES]>,
    done: usize,
}

impl CursorJob {
    /// Checks the command.
    pub(in crate::gpu) fn new(
        resources: &ResourceTable,
        scanouts: &Scanouts,
        c: &UpdateCursor,
    ) -> Result<Self, Fault> {
        let scanout = scanouts.find(c.scanout_id.get())?;
        let image = match c.resource_id.get() {
            0 => None,
            id => {
                format_of(resources.get(id)?)?;
                Some(Reading { resource: id, pixels: Box::new([0; CURSOR_BYTES]), done: 0 })
            }
        };
        Ok(Self { scanout, image, hot: (c.hot_x.get(), c.hot_y.get()), at: position(c) })
    }

    /// Copies the image until all of it is copied and set, or `deadline` passes.
    pub(in crate::gpu) fn run(
        &mut self,
        resources: &ResourceTable,
        scanouts: &mut Scanouts,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        let image = match self.image.take() {
            None => None,
            Some(mut reading) => match reading.run(resources, mem, deadline)? {
                Progress::Done => Some(reading.finish(resources)?),
                Progress::More => {
                    self.image = Some(reading);
                    return Ok(Progress::More);
                }
            },
        };
        scanouts.set_cursor(self.scanout, image, self.hot, self.at);
        Ok(Progress::Done)
    }
}

impl Reading {
    fn run(
        &mut self,
        resources: &ResourceTable,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        // It may have been replaced since the last round.
        let resource = resources.get(self.resource)?;
        format_of(resource)?;
        while self.done < CURSOR_BYTES {
            let end = CURSOR_BYTES.min(self.done + STRIP);
            let strip = &mut self.pixels[self.done..end];
            if !resource.read(mem, self.done as u64, strip, deadline) {
                // A 2D resource that nothing was transferred to yet.
                strip.fill(0);
            }
            self.done = end;
            if deadline.passed() {
                return Ok(Progress::more_if(self.done < CURSOR_BYTES));
            }
        }
        Ok(Progress::Done)
    }

    fn finish(mut self, resources: &ResourceTable) -> Result<CursorImage, Fault> {
        let format = format_of(resources.get(self.resource)?)?;
        format.to_bgra(&mut *self.pixels);
        if !format.has_alpha() {
            self.pixels.as_chunks_mut::<4>().0.iter_mut().for_each(|pixel| pixel[3] = u8::MAX);
        }
        Ok(Arc::from(self.pixels))
    }
}

/// The format of a resource that can be a cursor: a 2D resource of the right size, or a blob large
/// enough.
fn format_of(resource: &Resource) -> Result<PixelFormat, Fault> {
    let format = match &resource.kind {
        ResourceKind::Image(image) if image.size != SIZE => return Err(Fault::Parameter),
        ResourceKind::Image(image) => image.format,
        // A blob has no format: assume the one that Linux uses for cursors.
        ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => PixelFormat::B8G8R8A8,
    };
    if resource.size() < CURSOR_BYTES as u64 { Err(Fault::Parameter) } else { Ok(format) }
}

/// Where a cursor command puts the image's corner.
pub(in crate::gpu) fn position(c: &UpdateCursor) -> (i32, i32) {
    (c.x.get().cast_signed(), c.y.get().cast_signed())
}
