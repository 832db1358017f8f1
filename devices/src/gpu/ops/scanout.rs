// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scanouts: GET_DISPLAY_INFO, GET_EDID, SET_SCANOUT, SET_SCANOUT_BLOB, RESOURCE_FLUSH.

use crate::display::{Rect, ScanoutId, Size};
use crate::gpu::edid::edid;
use crate::gpu::engine::{Engine, Guest};
use crate::gpu::format::PixelFormat;
use crate::gpu::protocol::{Flush, ResourceId, SetScanout, SetScanoutBlob};
use crate::gpu::resource::{Kind, Resource};
use crate::gpu::response::{Fault, Response};
use crate::gpu::scanout::{Layout, Surface, View};
use crate::virtio::GuestMemory;

impl Engine {
    pub(in crate::gpu) fn get_display_info(&mut self) -> Result<Response, Fault> {
        Ok(Response::DisplayInfo(Box::new(self.scanouts.display_info())))
    }

    pub(in crate::gpu) fn get_edid(&mut self, raw: u32) -> Result<Response, Fault> {
        let (_, scanout) = self.scanouts.find(raw).ok_or(Fault::NoScanout)?;
        // Nothing is plugged in: a monitor that is not there has no EDID.
        let mode = scanout.mode.ok_or(Fault::NoScanout)?;
        Ok(Response::Edid(Box::new(edid(mode, raw))))
    }

    pub(in crate::gpu) fn set_scanout(&mut self, c: &SetScanout) -> Result<Response, Fault> {
        let layout = |resource: &Resource| match &resource.kind {
            Kind::Image(image) => Ok(Layout {
                format: image.format,
                offset: 0,
                stride: image.stride(),
                size: image.size,
            }),
            // A blob has no format and no size but those that SET_SCANOUT_BLOB gives.
            Kind::GuestBlob(_) | Kind::HostBlob(_) => Err(Fault::WrongKind),
        };
        self.put_on(c.scanout_id.get(), c.resource_id.get(), c.rect.into(), layout)
    }

    pub(in crate::gpu) fn set_scanout_blob(
        &mut self,
        c: &SetScanoutBlob,
    ) -> Result<Response, Fault> {
        let layout = |resource: &Resource| match &resource.kind {
            Kind::Image(_) => Err(Fault::WrongKind),
            Kind::GuestBlob(_) | Kind::HostBlob(_) => Ok(Layout {
                format: PixelFormat::from_wire(c.format.get()).ok_or(Fault::Parameter)?,
                offset: c.offsets[0].get().into(),
                stride: c.strides[0].get().into(),
                size: Size::new(c.width.get(), c.height.get()),
            }),
        };
        self.put_on(c.scanout_id.get(), c.resource_id.get(), c.rect.into(), layout)
    }

    /// Makes a scanout show `rect` of a framebuffer in `resource`; nothing for resource 0.
    fn put_on(
        &mut self,
        raw: u32,
        resource: ResourceId,
        rect: Rect,
        layout: impl FnOnce(&Resource) -> Result<Layout, Fault>,
    ) -> Result<Response, Fault> {
        let (id, scanout) = self.scanouts.find(raw).ok_or(Fault::NoScanout)?;
        if resource == 0 {
            scanout.surface = None;
            self.display.set_size(id, None);
            return Ok(Response::NoData);
        }
        let shown = self.resources.get(resource)?;
        let layout = layout(shown)?;
        if !layout.fits(shown.size()) || !rect.fits(layout.size) {
            return Err(Fault::Parameter);
        }
        scanout.surface = Some(Surface { resource, layout, rect });
        self.display.set_size(id, Some(rect.size()));
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn flush(&mut self, guest: Guest<'_>, c: &Flush) -> Result<Response, Fault> {
        let (id, damage) = (c.resource_id.get(), Rect::from(c.rect));
        match &self.resources.get(id)?.kind {
            Kind::Image(image) if !damage.fits(image.size) => return Err(Fault::Parameter),
            _ if damage.is_empty() => return Err(Fault::Parameter),
            _ => {}
        }
        self.counters.flushes += 1;
        let shown: Vec<(ScanoutId, Surface)> = self
            .scanouts
            .iter()
            .filter_map(|(scanout, state)| Some((scanout, state.surface?)))
            .filter(|(_, surface)| surface.resource == id)
            .collect();
        for (scanout, surface) in shown {
            let Some(damage) = damage.intersection(surface.rect) else { continue };
            let damage = damage.relative_to(surface.rect.x, surface.rect.y);
            if self.display.watched(scanout) {
                self.show(guest.mem, scanout, surface, damage);
            }
        }
        Ok(Response::NoData)
    }

    /// Gives the display the pixels of `damage`, to be read where they are.
    pub(in crate::gpu) fn show(
        &mut self,
        mem: &GuestMemory,
        scanout: ScanoutId,
        surface: Surface,
        damage: Rect,
    ) {
        if let Ok(resource) = self.resources.get(surface.resource) {
            let view = View { mem, resource, surface: &surface };
            self.display.flush(scanout, damage, &view);
        }
    }
}
