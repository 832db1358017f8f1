// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resources that the guest created, by ID, within the device's limits, and their totals.
//!
//! Each resource is charged for its record, even without host memory; a backing is charged for its
//! maximum number of runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use mm::budget::{Budget, Charge};
use mm::units::{Bytes, GuestRange};

use super::format::PixelFormat;
use super::host_memory::{Held, OutOfHostMemory};
use super::migrate::Migration;
use super::protocol::ResourceId;
use super::resource_backing::{CmaRegions, ResourceBacking};
use super::response::Fault;
use super::stats::{GpuStats, KindStats};
use crate::display::Size;
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// Cost of one resource without its memory: its record, its ID, and its share of a map node at
/// minimum occupancy.
const RESOURCE_BYTES: u64 = 2 * (size_of::<Resource>() + size_of::<ResourceId>()) as u64 + 32;

/// Guest memory behind a resource, and its charge.
pub(super) struct Backed {
    /// Where it is.
    pub backing: ResourceBacking,
    /// For the most runs that it can have.
    #[allow(dead_code, reason = "held until it is dropped, and read by tests only")]
    pub charge: Charge,
}

/// A 2D resource: an image that the host has, filled by transfers from guest memory.
pub(super) struct ResourceImage {
    /// Pixel format of image and backing.
    pub format: PixelFormat,
    /// Its size.
    pub size: Size,
    /// Guest memory that transfers read.
    pub backed: Option<Backed>,
    /// The host's image, allocated on the first transfer, since most buffers never have one.
    pub pixels: Option<Arc<Held>>,
}

/// A blob in guest memory; it is used where it is.
pub(super) struct GuestBlob {
    /// Its size in bytes, at most the backing's.
    pub size: u64,
    /// Where it is.
    pub backed: Backed,
}

/// A blob in host memory.
pub(super) struct HostBlob {
    /// Its size in bytes.
    pub size: u64,
    /// Its memory.
    pub memory: Arc<Held>,
    /// It may be mapped into the window.
    pub mappable: bool,
    /// Where in the window it is mapped.
    pub mapped: Option<u64>,
}

/// What a resource is.
pub(super) enum ResourceKind {
    /// A 2D resource.
    Image(ResourceImage),
    /// A blob in guest memory.
    GuestBlob(GuestBlob),
    /// A blob in host memory.
    HostBlob(HostBlob),
}

/// A resource.
pub(super) struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Serial number over the device's lifetime, so that no two resources share a UUID.
    pub serial: u64,
    _charge: Charge,
}

impl Resource {
    /// Guest memory behind it, if any.
    pub(super) fn backing(&self) -> Option<&ResourceBacking> {
        match &self.kind {
            ResourceKind::Image(image) => image.backed.as_ref().map(|backed| &backed.backing),
            ResourceKind::GuestBlob(blob) => Some(&blob.backed.backing),
            ResourceKind::HostBlob(_) => None,
        }
    }

    fn backing_mut(&mut self) -> Option<&mut ResourceBacking> {
        match &mut self.kind {
            ResourceKind::Image(image) => image.backed.as_mut().map(|backed| &mut backed.backing),
            ResourceKind::GuestBlob(blob) => Some(&mut blob.backed.backing),
            ResourceKind::HostBlob(_) => None,
        }
    }

    /// Copies bytes of the displayed contents and charges the work to `deadline`; false if some of
    /// them are missing.
    pub(super) fn read(
        &self,
        mem: &GuestMemoryMmap,
        offset: u64,
        out: &mut [u8],
        deadline: &mut Deadline,
    ) -> bool {
        let host = |memory: &Held, deadline: &mut Deadline, out: &mut [u8]| {
            deadline.charge(out.len() as u64);
            memory.read(offset, out)
        };
        match &self.kind {
            ResourceKind::Image(ResourceImage { pixels: Some(pixels), .. }) => {
                host(pixels, deadline, out)
            }
            ResourceKind::Image(_) => false,
            ResourceKind::GuestBlob(blob) => blob.backed.backing.read(mem, offset, out, deadline),
            ResourceKind::HostBlob(blob) => host(&blob.memory, deadline, out),
        }
    }

    /// Bytes that a framebuffer in it may take.
    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            ResourceKind::Image(image) => image.size.bytes(),
            ResourceKind::GuestBlob(blob) => blob.size,
            ResourceKind::HostBlob(blob) => blob.size,
        }
    }
}

/// Totals over all resources, updated on every change.
#[derive(Debug, Default, PartialEq, Eq)]
struct ResourceTally {
    images: KindStats,
    guest_blobs: KindStats,
    host_blobs: KindStats,
    backing_bytes: u64,
    backing_runs: u64,
    cma_bytes: u64,
}

impl ResourceTally {
    fn kind(&mut self, kind: &ResourceKind) -> &mut KindStats {
        match kind {
            ResourceKind::Image(_) => &mut self.images,
            ResourceKind::GuestBlob(_) => &mut self.guest_blobs,
            ResourceKind::HostBlob(_) => &mut self.host_blobs,
        }
    }

    fn add(&mut self, resource: &Resource) {
        let kind = self.kind(&resource.kind);
        kind.count += 1;
        kind.bytes += resource.size();
        if let Some(backing) = resource.backing() {
            self.backing_bytes += backing.len();
            self.backing_runs += backing.runs();
            self.cma_bytes += backing.cma_bytes();
        }
    }

    fn subtract(&mut self, resource: &Resource) {
        let kind = self.kind(&resource.kind);
        kind.count -= 1;
        kind.bytes -= resource.size();
        if let Some(backing) = resource.backing() {
            self.backing_bytes -= backing.len();
            self.backing_runs -= backing.runs();
            self.cma_bytes -= backing.cma_bytes();
        }
    }
}

/// The number of a resource to come, and what that is charged for.
pub(super) struct ReservedResource {
    id: ResourceId,
    charge: Charge,
}

/// All resources of a device.
pub(super) struct ResourceTable {
    by_id: BTreeMap<ResourceId, Resource>,
    max: usize,
    budget: Arc<Budget>,
    tally: ResourceTally,
    next_serial: u64,
}

impl ResourceTable {
    /// Room for `max` resources, charged to `budget`.
    pub(super) fn new(max: usize, budget: Arc<Budget>) -> Self {
        Self {
            by_id: BTreeMap::new(),
            max,
            budget,
            tally: ResourceTally::default(),
            next_serial: 0,
        }
    }

    /// Reserves a place for a new resource: refuses a number that none can have, and any when there
    /// is no room.
    pub(super) fn reserve(&self, id: ResourceId) -> Result<ReservedResource, Fault> {
        match id {
            0 => Err(Fault::ResourceId),
            _ if self.by_id.contains_key(&id) => Err(Fault::ResourceId),
            _ if self.by_id.len() >= self.max => Err(Fault::Limit),
            _ => {
                let charge = self.budget.try_charge(RESOURCE_BYTES);
                Ok(ReservedResource { id, charge: charge.map_err(OutOfHostMemory::from)? })
            }
        }
    }

    /// Adds a resource. Between [`ResourceTable::reserve`] and this no other may be added: commands that
    /// create resources run one after the other.
    pub(super) fn insert(&mut self, place: ReservedResource, kind: ResourceKind) {
        let ReservedResource { id, charge } = place;
        let serial = self.next_serial;
        if let Entry::Vacant(entry) = self.by_id.entry(id) {
            let resource = entry.insert(Resource { kind, serial, _charge: charge });
            self.next_serial += 1;
            self.tally.add(resource);
        }
    }

    /// The resource of that number.
    pub(super) fn get(&self, id: ResourceId) -> Result<&Resource, Fault> {
        self.by_id.get(&id).ok_or(Fault::ResourceId)
    }

    /// The image of that number.
    pub(super) fn image(&self, id: ResourceId) -> Result<&ResourceImage, Fault> {
        match &self.get(id)?.kind {
            ResourceKind::Image(image) => Ok(image),
            ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => Err(Fault::WrongKind),
        }
    }

    /// Changes the image of that number.
    pub(super) fn with_image<T>(
        &mut self,
        id: ResourceId,
        change: impl FnOnce(&mut ResourceImage) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let resource = self.by_id.get_mut(&id).ok_or(Fault::ResourceId)?;
        self.tally.subtract(resource);
        let result = match &mut resource.kind {
            ResourceKind::Image(image) => change(image),
            ResourceKind::GuestBlob(_) | ResourceKind::HostBlob(_) => Err(Fault::WrongKind),
        };
        self.tally.add(resource);
        result
    }

    /// The host blob of that number, to be mapped or unmapped.
    pub(super) fn host_blob(&mut self, id: ResourceId) -> Result<&mut HostBlob, Fault> {
        match &mut self.by_id.get_mut(&id).ok_or(Fault::ResourceId)?.kind {
            ResourceKind::HostBlob(blob) => Ok(blob),
            ResourceKind::Image(_) | ResourceKind::GuestBlob(_) => Err(Fault::WrongKind),
        }
    }

    /// Continues the migration of pages of resource `id`.
    pub(super) fn migrate(
        &mut self,
        id: ResourceId,
        migration: &mut Migration,
        mem: &GuestMemoryMmap,
        cma: &CmaRegions,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        let resource = self.by_id.get_mut(&id).ok_or(Fault::ResourceId)?;
        self.tally.subtract(resource);
        let result = match resource.backing_mut() {
            Some(backing) => migration.run(mem, backing, cma, deadline),
            None => Err(Fault::ResourceId),
        };
        self.tally.add(resource);
        result
    }

    /// Takes a resource out.
    pub(super) fn remove(&mut self, id: ResourceId) -> Option<Resource> {
        let resource = self.by_id.remove(&id)?;
        self.tally.subtract(&resource);
        Some(resource)
    }

    /// Takes all resources out.
    pub(super) fn take_all(&mut self) -> BTreeMap<ResourceId, Resource> {
        self.tally = ResourceTally::default();
        std::mem::take(&mut self.by_id)
    }

    /// Adds the sums over all resources to `stats`.
    pub(super) fn count(&self, stats: &mut GpuStats) {
        let ResourceTally {
            images,
            guest_blobs,
            host_blobs,
            backing_bytes,
            backing_runs,
            cma_bytes,
        } = self.tally;
        stats.images = images;
        stats.guest_blobs = guest_blobs;
        stats.host_blobs = host_blobs;
        stats.backing_bytes = backing_bytes;
        stats.backing_runs = backing_runs;
        stats.cma_pages = cma_bytes / mm::units::PAGE_SIZE;
    }

    /// Adds guest pages that resources are backed by to `ranges`, from where `at` says, until
    /// `deadline` passes; says in `at` where to go on.
    pub(super) fn backing_ranges(
        &self,
        at: &mut BackingPosition,
        ranges: &mut Vec<GuestRange>,
        deadline: &mut Deadline,
    ) -> Progress {
        for (id, resource) in self.by_id.range(at.resource..) {
            let offset = if *id == at.resource { at.offset } else { 0 };
            deadline.charge(Deadline::ENTRY);
            for (start, addr, len) in
                resource.backing().into_iter().flat_map(|b| b.runs_from(offset))
            {
                *at = BackingPosition { resource: *id, offset: start };
                if deadline.passed() {
                    return Progress::More;
                }
                ranges.extend(GuestRange::inside_bytes(addr, Bytes(len)));
                deadline.charge(Deadline::ENTRY);
            }
            *at = BackingPosition { resource: *id, offset: u64::MAX };
            if deadline.passed() {
                return Progress::More;
            }
        }
        Progress::Done
    }

    /// Every resource, by number.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (ResourceId, &Resource)> {
        self.by_id.iter().map(|(id, resource)| (*id, resource))
    }

    /// Recounts what is counted as resources come and go; panics where that differs.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn validate(&self, cma: &CmaRegions) {
        let mut tally = ResourceTally::default();
        assert!(self.by_id.len() <= self.max, "limit of resources");
        for (id, resource) in &self.by_id {
            tally.add(resource);
            let backed = match &resource.kind {
                ResourceKind::Image(image) => image.backed.as_ref(),
                ResourceKind::GuestBlob(blob) => Some(&blob.backed),
                ResourceKind::HostBlob(_) => None,
            };
            let Some(Backed { backing, charge }) = backed else { continue };
            let paid = charge.amount() / super::resource_backing::RUN_BYTES;
            assert!(backing.runs() <= paid, "resource {id} outgrew its charge");
            backing.validate(cma);
        }
        assert_eq!(self.tally, tally, "sums over all resources");
    }
}

/// Position of a walk over all backings.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackingPosition {
    resource: ResourceId,
    offset: u64,
}
