// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The image of the mouse pointer, for UPDATE_CURSOR.
//!
//! It is copied when it is set: 16 KiB, after which its resource may go or move.

use std::sync::Arc;

use crate::display::{CURSOR_BYTES, CURSOR_EXTENT, Size};
use crate::gpu::format::PixelFormat;
use crate::gpu::protocol::ResourceId;
use crate::gpu::resource::{ResourceKind, ResourceTable};
use crate::gpu::response::Fault;
use crate::gpu::scanouts::CursorImage;
use crate::virtio::{Deadline, GuestMemoryMmap};

/// Size of a cursor's image.
const SIZE: Size = Size::new(CURSOR_EXTENT as u16, CURSOR_EXTENT as u16);

/// The image in resource `id`: a 2D resource of the right size, or a blob large enough.
pub(in crate::gpu) fn image(
    resources: &ResourceTable,
    mem: &GuestMemoryMmap,
    id: ResourceId,
    deadline: &mut Deadline,
) -> Result<CursorImage, Fault> {
    let resource = resources.get(id)?;
    let format = match &resource.kind {
        ResourceKind::Image(image) if image.size != SIZE => return Err(Fault::Parameter),
        ResourceKind::Image(image) => image.format,
        // A blob has no format: assume the one that Linux uses for cursors.
        ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => PixelFormat::B8G8R8A8,
    };
    if resource.size() < CURSOR_BYTES as u64 {
        return Err(Fault::Parameter);
    }
    let mut pixels = [0; CURSOR_BYTES];
    if !resource.read(mem, 0, &mut pixels, deadline) {
        // A 2D resource that nothing was transferred to yet.
        pixels.fill(0);
    }
    format.to_bgra(&mut pixels);
    if !format.has_alpha() {
        pixels.as_chunks_mut::<4>().0.iter_mut().for_each(|pixel| pixel[3] = u8::MAX);
    }
    Ok(Arc::new(pixels))
}
