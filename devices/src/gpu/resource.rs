// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resources: what a guest made, by number, up to the device's limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::backing::Backing;
use super::format::{BYTES_PER_PIXEL, PixelFormat};
use super::host_memory::Held;
use super::protocol::ResourceId;
use super::response::Fault;
use crate::display::Size;
use crate::virtio::GuestMemory;

/// A 2D resource: an image that the host has, filled by transfers from guest memory.
pub(super) struct Image {
    /// Pixel format of image and backing.
    pub format: PixelFormat,
    /// Its size.
    pub size: Size,
    /// Guest memory that transfers read.
    pub backing: Option<Backing>,
    /// The host's image; taken at the first transfer, since most buffers of a guest never see one.
    pub pixels: Option<Arc<Held>>,
}

impl Image {
    /// Bytes from row to row, in the image and in its backing alike.
    pub(super) fn stride(&self) -> u64 {
        u64::from(self.size.width) * u64::from(BYTES_PER_PIXEL)
    }
}

/// A blob in guest memory; it is used where it is.
pub(super) struct GuestBlob {
    /// Its size in bytes, at most the backing's.
    pub size: u64,
    /// Where it is.
    pub backing: Backing,
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
pub(super) enum Kind {
    /// A 2D resource.
    Image(Image),
    /// A blob in guest memory.
    GuestBlob(GuestBlob),
    /// A blob in host memory.
    HostBlob(HostBlob),
}

/// A resource.
pub(super) struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Counts the resources that this device ever had, so that no two share a UUID.
    pub serial: u64,
    /// Runs of backing that it is charged for.
    charge: u64,
}

impl Resource {
    /// Guest memory behind it, if any.
    pub(super) fn backing(&self) -> Option<&Backing> {
        match &self.kind {
            Kind::Image(image) => image.backing.as_ref(),
            Kind::GuestBlob(blob) => Some(&blob.backing),
            Kind::HostBlob(_) => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn backing_mut(&mut self) -> Option<&mut Backing> {
        match &mut self.kind {
            Kind::Image(image) => image.backing.as_mut(),
            Kind::GuestBlob(blob) => Some(&mut blob.backing),
            Kind::HostBlob(_) => None,
        }
    }

    /// Copies bytes of what a scanout of it shows; false when they are not all there.
    pub(super) fn read(&self, mem: &GuestMemory, offset: u64, out: &mut [u8]) -> bool {
        match &self.kind {
            Kind::Image(image) => match &image.pixels {
                Some(pixels) => pixels.read(offset, out),
                None => false,
            },
            Kind::GuestBlob(blob) => blob.backing.read(mem, offset, out),
            Kind::HostBlob(blob) => blob.memory.read(offset, out),
        }
    }

    /// Bytes that a framebuffer in it may take.
    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Image(image) => image.size.bytes(),
            Kind::GuestBlob(blob) => blob.size,
            Kind::HostBlob(blob) => blob.size,
        }
    }
}

/// All resources of a device.
pub(super) struct Resources {
    by_id: HashMap<ResourceId, Resource>,
    max: usize,
    max_charge: u64,
    charged: u64,
    next_serial: u64,
}

impl Resources {
    /// Room for `max` resources, and for `max_charge` runs of backing in all of them.
    pub(super) fn new(max: usize, max_charge: u64) -> Self {
        Self { by_id: HashMap::new(), max, max_charge, charged: 0, next_serial: 0 }
    }

    /// Refuses a number that no new resource can have, and any when there is no room.
    pub(super) fn check_new(&self, id: ResourceId) -> Result<(), Fault> {
        match id {
            0 => Err(Fault::ResourceId),
            _ if self.by_id.contains_key(&id) => Err(Fault::ResourceId),
            _ if self.by_id.len() >= self.max => Err(Fault::Limit),
            _ => Ok(()),
        }
    }

    /// Adds a resource under a number that [`Resources::check_new`] has found good.
    pub(super) fn insert(&mut self, id: ResourceId, kind: Kind) {
        let serial = self.next_serial;
        self.next_serial += 1;
        if let Entry::Vacant(entry) = self.by_id.entry(id) {
            entry.insert(Resource { kind, serial, charge: 0 });
        }
    }

    /// Refuses a backing of `charge` runs at worst for which there is no room.
    pub(super) fn check_charge(&self, charge: u64) -> Result<(), Fault> {
        let after = self.charged.checked_add(charge).ok_or(Fault::Limit)?;
        if after > self.max_charge { Err(Fault::Limit) } else { Ok(()) }
    }

    /// Charges resource `id` for its backing, in place of what it was charged for.
    pub(super) fn set_charge(&mut self, id: ResourceId, charge: u64) {
        if let Some(resource) = self.by_id.get_mut(&id) {
            self.charged = self.charged - resource.charge + charge;
            resource.charge = charge;
        }
    }

    /// The resource of that number.
    pub(super) fn get(&self, id: ResourceId) -> Result<&Resource, Fault> {
        self.by_id.get(&id).ok_or(Fault::ResourceId)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, id: ResourceId) -> Result<&mut Resource, Fault> {
        self.by_id.get_mut(&id).ok_or(Fault::ResourceId)
    }

    /// Drops a resource, and its memory with it.
    pub(super) fn remove(&mut self, id: ResourceId) {
        if let Some(resource) = self.by_id.remove(&id) {
            self.charged -= resource.charge;
        }
        if self.by_id.is_empty() {
            // A table that a guest once filled does not stay that large.
            self.by_id.shrink_to_fit();
        }
    }

    /// Every resource, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ResourceId, &Resource)> {
        self.by_id.iter().map(|(id, resource)| (*id, resource))
    }

    /// Numbers of all resources.
    pub(super) fn ids(&self) -> Vec<ResourceId> {
        self.by_id.keys().copied().collect()
    }

    /// Recounts what is counted as resources come and go; panics where that differs.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn validate(&self) {
        let charged: u64 = self.by_id.values().map(|resource| resource.charge).sum();
        assert_eq!(self.charged, charged, "charge of all resources");
        assert!(self.charged <= self.max_charge && self.by_id.len() <= self.max, "limits");
        for (id, resource) in &self.by_id {
            let Some(backing) = resource.backing() else {
                assert_eq!(resource.charge, 0, "resource {id} is charged for no backing");
                continue;
            };
            assert!(backing.runs() as u64 <= resource.charge, "resource {id} outgrew its charge");
            let total: u64 = backing.extents().map(|(_, len)| len).sum();
            assert_eq!(total, backing.len(), "runs of resource {id}");
        }
    }
}
