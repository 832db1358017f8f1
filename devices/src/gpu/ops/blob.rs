// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blobs: RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB.
//!
//! A blob of guest memory is used where it is. A blob of host memory is plain memory, without a
//! rendering context: `blob_id` and the context are 0, and the guest reaches it by mapping it.

use std::sync::Arc;

use crate::gpu::engine::{Engine, Guest};
use crate::gpu::protocol::{CreateBlob, MapBlob, MemEntry, ResourceId, blob_flag, blob_mem};
use crate::gpu::resource::{GuestBlob, HostBlob, Kind};
use crate::gpu::response::{Fault, Response};

impl Engine {
    pub(in crate::gpu) fn create_blob(
        &mut self,
        guest: Guest<'_>,
        c: &CreateBlob,
        entries: &[MemEntry],
    ) -> Result<Response, Fault> {
        let id = c.resource_id.get();
        self.resources.check_new(id)?;
        if c.size.get() == 0 || c.blob_flags.get() & !blob_flag::ALL != 0 || c.blob_id.get() != 0 {
            return Err(Fault::Parameter);
        }
        match c.blob_mem.get() {
            blob_mem::GUEST => self.create_guest_blob(guest, c, entries),
            blob_mem::HOST3D if entries.is_empty() => self.create_host_blob(c),
            // HOST3D_GUEST needs transfers by a rendering context.
            _ => Err(Fault::Parameter),
        }
    }

    fn create_guest_blob(
        &mut self,
        guest: Guest<'_>,
        c: &CreateBlob,
        entries: &[MemEntry],
    ) -> Result<Response, Fault> {
        let (id, size) = (c.resource_id.get(), c.size.get());
        let (backing, charge) = self.backing(guest, entries)?;
        if !backing.holds(0, size) {
            return Err(Fault::Parameter);
        }
        self.resources.insert(id, Kind::GuestBlob(GuestBlob { size, backing }));
        self.backed(id, charge);
        Ok(Response::NoData)
    }

    fn create_host_blob(&mut self, c: &CreateBlob) -> Result<Response, Fault> {
        let (id, size) = (c.resource_id.get(), c.size.get());
        let memory = self.host.take(size)?;
        let mappable = c.blob_flags.get() & blob_flag::MAPPABLE != 0;
        self.resources
            .insert(id, Kind::HostBlob(HostBlob { size, memory, mappable, mapped: None }));
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn map_blob(&mut self, c: &MapBlob) -> Result<Response, Fault> {
        let blob = host_blob(&mut self.resources.get_mut(c.resource_id.get())?.kind)?;
        if !blob.mappable {
            return Err(Fault::Parameter);
        }
        if blob.mapped.is_some() {
            return Err(Fault::WrongState);
        }
        self.window.map(c.offset.get(), &Arc::clone(&blob.memory))?;
        blob.mapped = Some(c.offset.get());
        Ok(Response::MapInfo)
    }

    pub(in crate::gpu) fn unmap_blob(&mut self, id: ResourceId) -> Result<Response, Fault> {
        let blob = host_blob(&mut self.resources.get_mut(id)?.kind)?;
        let offset = blob.mapped.ok_or(Fault::WrongState)?;
        self.window.unmap(offset)?;
        blob.mapped = None;
        Ok(Response::NoData)
    }
}

fn host_blob(kind: &mut Kind) -> Result<&mut HostBlob, Fault> {
    match kind {
        Kind::HostBlob(blob) => Ok(blob),
        Kind::Image(_) | Kind::GuestBlob(_) => Err(Fault::WrongKind),
    }
}
