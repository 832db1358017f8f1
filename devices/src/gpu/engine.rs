// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device without its queues: state, and one dispatch over decoded commands.

use mm::units::{GuestRange, PAGE_SIZE};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::backing::Backing;
use super::host_memory::Budget;
use super::protocol::{Command, ResourceId, feature};
use super::resource::{Kind, Resources};
use super::response::{Fault, Response};
use super::scanout::{Scanouts, Surface};
use super::stats::{self, Counters, GpuStats};
use super::uuid::Uuids;
use super::window::Window;
use super::{GpuParts, GpuSettings};
use crate::display::{Cursor, Display, Rect, ScanoutId, Size};
use crate::virtio::GuestMemory;

/// The driver's side while the device is active.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    /// Guest RAM.
    pub mem: &'a GuestMemory,
    /// Features that both sides agreed on.
    pub features: u64,
}

/// State of the device; commands run on it one at a time.
pub(super) struct Engine {
    pub(super) max_entries: u32,
    pub(super) resources: Resources,
    pub(super) scanouts: Scanouts,
    pub(super) host: Budget,
    pub(super) window: Window,
    pub(super) display: Box<dyn Display>,
    pub(super) counters: Counters,
    pub(super) uuids: Uuids,
    /// Told of a new backing that may have the whole of a block.
    pub(super) wants_blocks: Option<WantsBlocks>,
    max_resources: usize,
}

/// See [`Gpu::on_large_backing`](super::Gpu::on_large_backing).
pub type WantsBlocks = Box<dyn Fn() + Send>;

impl Engine {
    /// A device with nothing in it, whose scanouts are plugged in.
    pub(super) fn new(settings: &GpuSettings, parts: GpuParts) -> Self {
        let limits = settings.limits;
        Self {
            max_entries: limits.entries_per_resource,
            resources: Resources::new(limits.resources, 0),
            scanouts: Scanouts::new(settings.scanouts, settings.mode),
            host: Budget::new(parts.host_memory, limits.host_bytes),
            window: Window::new(parts.window),
            display: parts.display,
            counters: Counters::default(),
            uuids: Uuids::new(),
            wants_blocks: None,
            max_resources: limits.resources,
        }
    }

    /// A driver with that memory is ready.
    pub(super) fn start(&mut self, mem: &GuestMemory) {
        // A guest has each page of its RAM in one buffer, as one entry at worst. Twice that leaves
        // room for pages that are in two; four runs a page bound what a hostile one can cost.
        let pages: u64 = mem.iter().map(|region| region.len() / PAGE_SIZE).sum();
        self.resources = Resources::new(self.max_resources, pages.saturating_mul(4));
    }

    /// Executes one command; every way to fail leaves the state as it was.
    pub(super) fn execute(
        &mut self,
        guest: Guest<'_>,
        command: Command,
    ) -> Result<Response, Fault> {
        if guest.features & needed_feature(&command) != needed_feature(&command) {
            return Err(Fault::NotOffered);
        }
        match command {
            Command::GetDisplayInfo => self.get_display_info(),
            Command::Create2d(c) => self.create_2d(&c),
            Command::Unref(id) => self.unref(id),
            Command::SetScanout(c) => self.set_scanout(&c),
            Command::Flush(c) => self.flush(guest, &c),
            Command::TransferToHost2d(c) => self.transfer_to_host_2d(guest, &c),
            Command::AttachBacking(id, entries) => self.attach_backing(guest, id, &entries),
            Command::DetachBacking(id) => self.detach_backing(id),
            Command::GetEdid { scanout } => self.get_edid(scanout),
            Command::AssignUuid(id) => self.assign_uuid(id),
            Command::CreateBlob(c, entries) => self.create_blob(guest, &c, &entries),
            Command::SetScanoutBlob(c) => self.set_scanout_blob(&c),
            Command::MapBlob(c) => self.map_blob(&c),
            Command::UnmapBlob(id) => self.unmap_blob(id),
            Command::MigrateBacking(id, entries) => self.migrate_backing(guest, id, &entries),
            Command::MigratePages(pages) => self.migrate_pages(guest, &pages),
            Command::UpdateCursor(c) => self.update_cursor(guest, &c),
            Command::MoveCursor(c) => self.move_cursor(&c),
            Command::Capset => Err(Fault::Parameter),
            Command::Context => Err(Fault::NoContext),
            Command::Unsupported(_) => Err(Fault::NotOffered),
        }
    }

    /// Drops everything of the guest's making; scanouts keep their modes.
    pub(super) fn reset(&mut self) {
        for id in self.resources.ids() {
            if self.unref(id).is_err() {
                // Only a mapping can hold a resource back, and the window keeps its memory alive.
                self.resources.remove(id);
            }
        }
        for (id, scanout) in self.scanouts.iter_mut() {
            scanout.surface = None;
            scanout.cursor = Cursor::default();
            self.display.set_size(id, None);
            self.display.set_cursor(id, &scanout.cursor);
        }
    }

    /// Announces another mode for a scanout, or unplugs it; true when that is news.
    pub(super) fn set_mode(&mut self, raw: u32, mode: Option<Size>) -> Result<bool, Fault> {
        let (_, scanout) = self.scanouts.find(raw).ok_or(Fault::NoScanout)?;
        Ok(std::mem::replace(&mut scanout.mode, mode) != mode)
    }

    /// Gives the display the whole picture of a scanout, as it is at this moment.
    pub(super) fn refresh(&mut self, mem: &GuestMemory, id: ScanoutId) {
        if let Some(surface) = self.scanouts.get(id).and_then(|scanout| scanout.surface) {
            self.show(mem, id, surface, Rect::whole(surface.rect.size()));
        }
    }

    /// What the device holds and has counted; `cma` says where CMA regions are.
    pub(super) fn stats(&self, cma: &[GuestRange]) -> GpuStats {
        stats::collect(self, cma)
    }

    /// Guest pages that resources are backed by, for a map of guest memory.
    pub(super) fn backing_ranges(&self) -> impl Iterator<Item = GuestRange> + '_ {
        let extents = |backing: &'_ Backing| {
            let extent = |(addr, len)| GuestRange::inside_bytes(addr, mm::units::Bytes(len));
            backing.extents().filter_map(extent).collect::<Vec<_>>()
        };
        self.resources.iter().filter_map(|(_, resource)| resource.backing()).flat_map(extents)
    }

    /// UNREF: scanouts that show the resource go dark, and a mapping goes first.
    fn unref(&mut self, id: ResourceId) -> Result<Response, Fault> {
        if let Kind::HostBlob(blob) = &self.resources.get(id)?.kind
            && blob.mapped.is_some()
        {
            self.unmap_blob(id)?;
        }
        let shown = |surface: &Option<Surface>| surface.is_some_and(|s| s.resource == id);
        for (scanout_id, scanout) in self.scanouts.iter_mut() {
            if shown(&scanout.surface) {
                scanout.surface = None;
                self.display.set_size(scanout_id, None);
            }
        }
        self.resources.remove(id);
        Ok(Response::NoData)
    }

    /// Recounts everything; panics where a count is off.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn validate(&self) {
        self.resources.validate();
        let (mut held, mut mapped) = (0, 0);
        for (_, resource) in self.resources.iter() {
            match &resource.kind {
                Kind::Image(image) => held += image.pixels.as_ref().map_or(0, |p| p.charge()),
                Kind::HostBlob(blob) => {
                    held += blob.memory.charge();
                    mapped += blob.mapped.map_or(0, |_| blob.memory.charge());
                }
                Kind::GuestBlob(_) => {}
            }
        }
        assert_eq!(self.host.used(), held, "host memory of all resources");
        assert_eq!(self.window.mapped_bytes(), mapped, "mappings of all resources");
        for (id, scanout) in self.scanouts.iter() {
            let Some(surface) = scanout.surface else { continue };
            let resource = self.resources.get(surface.resource);
            assert!(
                resource.is_ok_and(|r| surface.layout.fits(r.size())),
                "scanout {id} shows what is not there"
            );
            assert!(surface.rect.fits(surface.layout.size), "scanout {id} leaves its framebuffer");
        }
    }
}

/// The feature without which the command is not offered; none for most.
fn needed_feature(command: &Command) -> u64 {
    match command {
        Command::GetEdid { .. } => feature::EDID,
        Command::AssignUuid(_) => feature::RESOURCE_UUID,
        Command::CreateBlob(..)
        | Command::SetScanoutBlob(_)
        | Command::MapBlob(_)
        | Command::UnmapBlob(_) => feature::RESOURCE_BLOB,
        Command::MigrateBacking(..) => feature::MIGRATE,
        Command::MigratePages(..) => feature::MIGRATE | feature::MIGRATE_PAGES,
        _ => 0,
    }
}
