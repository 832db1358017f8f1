// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scanouts: SET_SCANOUT, SET_SCANOUT_BLOB, RESOURCE_FLUSH.

use crate::display::{Area, Rect, ScanoutId, Size};
use crate::gpu::format::PixelFormat;
use crate::gpu::protocol::{Flush, ResourceId, SetScanout, SetScanoutBlob};
use crate::gpu::resource::{Resource, ResourceKind, ResourceTable};
use crate::gpu::response::Fault;
use crate::gpu::scanout::{Layout, ScanoutView, Surface};
use crate::gpu::scanouts::Scanouts;
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// SET_SCANOUT.
pub(in crate::gpu) fn set_scanout(
    resources: &ResourceTable,
    scanouts: &mut Scanouts,
    c: &SetScanout,
) -> Result<(), Fault> {
    let (raw, id, rect) = (c.scanout_id.get(), c.resource_id.get(), c.rect.into());
    put_on(resources, scanouts, raw, id, rect, Surface::layout_of_image)
}

/// SET_SCANOUT_BLOB.
pub(in crate::gpu) fn set_scanout_blob(
    resources: &ResourceTable,
    scanouts: &mut Scanouts,
    c: &SetScanoutBlob,
) -> Result<(), Fault> {
    let layout = |resource: &Resource| match &resource.kind {
        ResourceKind::Image(_) => Err(Fault::WrongKind),
        ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => Ok(Layout {
            format: PixelFormat::from_wire(c.format.get()).ok_or(Fault::Parameter)?,
            offset: c.offsets[0].get().into(),
            stride: c.strides[0].get().into(),
            size: Size::checked(c.width.get(), c.height.get()).ok_or(Fault::Parameter)?,
        }),
    };
    let (raw, id, rect) = (c.scanout_id.get(), c.resource_id.get(), c.rect.into());
    put_on(resources, scanouts, raw, id, rect, layout)
}

/// Makes a scanout show `rect` of a framebuffer in resource `id`; nothing for resource 0.
fn put_on(
    resources: &ResourceTable,
    scanouts: &mut Scanouts,
    raw: u32,
    id: ResourceId,
    rect: Rect,
    layout: impl FnOnce(&Resource) -> Result<Layout, Fault>,
) -> Result<(), Fault> {
    let scanout = scanouts.find(raw)?;
    let surface = match id {
        0 => None,
        id => {
            let resource = resources.get(id)?;
            Some(Surface::new(id, resource, layout(resource)?, rect)?)
        }
    };
    scanouts.show(scanout, surface);
    Ok(())
}

/// A RESOURCE_FLUSH in progress: the remaining damage of each watched scanout.
pub(in crate::gpu) struct Flushing {
    todo: Vec<(ScanoutId, Surface, Area)>,
}

impl Flushing {
    /// Checks the command and finds the scanouts that it is about.
    pub(in crate::gpu) fn new(
        resources: &ResourceTable,
        scanouts: &Scanouts,
        c: &Flush,
    ) -> Result<Self, Fault> {
        let (id, damage) = (c.resource_id.get(), Rect::from(c.rect));
        match &resources.get(id)?.kind {
            ResourceKind::Image(image) if damage.within(image.size).is_none() => {
                return Err(Fault::Parameter);
            }
            _ if damage.is_empty() => return Err(Fault::Parameter),
            _ => {}
        }
        let damaged = |(scanout, surface): (ScanoutId, Surface)| {
            let damage = damage.clip(surface.area)?.relative_to(surface.area);
            // In columns, as the deadline is looked at after each row.
            let columns = damage.columns().map(move |column| (scanout, surface, column));
            scanouts.watched(scanout).then_some(columns)
        };
        Ok(Self { todo: scanouts.showing(id).filter_map(damaged).flatten().collect() })
    }

    /// Copies pixels to displays until done or `deadline` passes.
    pub(in crate::gpu) fn run(
        &mut self,
        resources: &ResourceTable,
        scanouts: &mut Scanouts,
        mem: &GuestMemoryMmap,
        deadline: &mut Deadline,
    ) -> Progress {
        while let Some((scanout, surface, damage)) = self.todo.pop() {
            let Ok(resource) = resources.get(surface.resource) else { continue };
            let view = ScanoutView { mem, resource, surface: &surface };
            if let Some(left) = scanouts.flush(scanout, damage, &view, deadline) {
                self.todo.push((scanout, surface, left));
            }
            if deadline.passed() {
                return Progress::more_if(!self.todo.is_empty());
            }
        }
        Progress::Done
    }
}
