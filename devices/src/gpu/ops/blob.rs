// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blobs of host memory: RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB.
//!
//! A blob of host memory is plain memory, without a rendering context: `blob_id` and the context
//! are 0, and the guest reaches it by mapping it.

use std::sync::Arc;

use crate::gpu::host_memory::HostPool;
use crate::gpu::protocol::{CreateBlob, MapBlob, ResourceId, blob_flag};
use crate::gpu::resource::{HostBlob, ReservedResource, ResourceKind, ResourceTable};
use crate::gpu::response::Fault;
use crate::gpu::window::Window;

/// Checks common to all blobs: a free ID, a size, and standard flags.
pub(in crate::gpu) fn reserve(
    resources: &ResourceTable,
    c: &CreateBlob,
) -> Result<ReservedResource, Fault> {
    let place = resources.reserve(c.resource_id.get())?;
    if c.size.get() == 0 || c.blob_flags.get() & !blob_flag::ALL != 0 || c.blob_id.get() != 0 {
        return Err(Fault::Parameter);
    }
    Ok(place)
}

/// RESOURCE_CREATE_BLOB of host memory at `place`.
pub(in crate::gpu) fn create_host_blob(
    resources: &mut ResourceTable,
    host: &mut HostPool,
    place: ReservedResource,
    c: &CreateBlob,
) -> Result<(), Fault> {
    let size = c.size.get();
    let memory = host.take(size)?;
    let mappable = c.blob_flags.get() & blob_flag::MAPPABLE != 0;
    resources
        .insert(place, ResourceKind::HostBlob(HostBlob { size, memory, mappable, mapped: None }));
    Ok(())
}

/// RESOURCE_MAP_BLOB.
pub(in crate::gpu) fn map_blob(
    resources: &mut ResourceTable,
    window: &mut Window,
    c: &MapBlob,
) -> Result<(), Fault> {
    let blob = resources.host_blob(c.resource_id.get())?;
    if !blob.mappable {
        return Err(Fault::Parameter);
    }
    if blob.mapped.is_some() {
        return Err(Fault::WrongState);
    }
    window.map(c.offset.get(), &Arc::clone(&blob.memory))?;
    blob.mapped = Some(c.offset.get());
    Ok(())
}

/// RESOURCE_UNMAP_BLOB.
pub(in crate::gpu) fn unmap_blob(
    resources: &mut ResourceTable,
    window: &mut Window,
    id: ResourceId,
) -> Result<(), Fault> {
    let blob = resources.host_blob(id)?;
    let offset = blob.mapped.ok_or(Fault::WrongState)?;
    window.unmap(offset)?;
    blob.mapped = None;
    Ok(())
}
