// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESOURCE_ATTACH_BACKING, and RESOURCE_CREATE_BLOB of guest memory: up to hundreds of thousands
//! of entries, which are read, checked and charged in strips.

use mm::budget::{Budget, Charge};
use mm::units::BLOCK_SIZE;
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

use crate::gpu::host_memory::OutOfHostMemory;
use crate::gpu::protocol::{CreateBlob, DecodeError, Entries, MemEntry, ResourceId};
use crate::gpu::resource::{
    Backed, GuestBlob, ReservedResource, ResourceImage, ResourceKind, ResourceTable,
};
use crate::gpu::resource_backing::{Builder, CmaRegions, RUN_BYTES};
use crate::gpu::response::Fault;
use crate::virtio::{Deadline, GuestMemoryMmap, Progress, Segments};

/// Entries read at one time.
const STRIP: usize = 64;

/// Purpose of the backing.
enum BuildTarget {
    /// An image that has none.
    Image(ResourceId),
    /// A new blob of this many bytes.
    Blob(ReservedResource, u64),
}

/// A backing under construction. Until it is complete, no other part refers to it.
///
/// An unfinished one has up to 2^18 runs, which take milliseconds to free:
/// [abandon](Build::abandon) it instead of dropping it.
pub(in crate::gpu) struct Build {
    target: BuildTarget,
    entries: Entries,
    next: u32,
    builder: Builder,
    charge: Charge,
}

impl Build {
    /// RESOURCE_ATTACH_BACKING.
    pub(in crate::gpu) fn attach(
        resources: &ResourceTable,
        budget: &Arc<Budget>,
        id: ResourceId,
        entries: Entries,
    ) -> Result<Self, Fault> {
        if resources.image(id)?.backed.is_some() {
            return Err(Fault::WrongState);
        }
        Self::new(BuildTarget::Image(id), entries, budget)
    }

    /// RESOURCE_CREATE_BLOB of guest memory at `place`.
    pub(in crate::gpu) fn blob(
        budget: &Arc<Budget>,
        place: ReservedResource,
        c: &CreateBlob,
        entries: Entries,
    ) -> Result<Self, Fault> {
        Self::new(BuildTarget::Blob(place, c.size.get()), entries, budget)
    }

    fn new(target: BuildTarget, entries: Entries, budget: &Arc<Budget>) -> Result<Self, Fault> {
        let charge = budget.try_charge(0).map_err(OutOfHostMemory::from)?;
        Ok(Self { target, entries, next: 0, builder: Builder::default(), charge })
    }

    /// Reads entries until all are read or `deadline` passes.
    pub(in crate::gpu) fn run(
        &mut self,
        mem: &GuestMemoryMmap,
        buffer: &Segments,
        cma: &CmaRegions,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        while self.next < self.entries.count {
            if deadline.passed() {
                return Ok(Progress::More);
            }
            let left = (self.entries.count - self.next) as usize;
            let mut strip = [MemEntry::new_zeroed(); STRIP];
            let strip = &mut strip[..left.min(STRIP)];
            let at = self.entries.at + u64::from(self.next) * size_of::<MemEntry>() as u64;
            let bytes = strip.as_mut_bytes();
            if buffer.read(mem, at, bytes) != bytes.len() {
                return Err(DecodeError::Malformed.into());
            }
            for entry in &*strip {
                self.builder.push(mem, entry, cma)?;
                self.next += 1;
            }
            deadline.charge(strip.len() as u64 * Deadline::ENTRY);
            let runs = self.builder.worst_runs();
            self.charge.resize(runs * RUN_BYTES).map_err(OutOfHostMemory::from)?;
        }
        Ok(Progress::Done)
    }

    /// Whether the backing, which is whole, can be put to its use.
    pub(in crate::gpu) fn check(&self, resources: &ResourceTable) -> Result<(), Fault> {
        self.builder.check()?;
        match &self.target {
            BuildTarget::Image(id) => resources.image(*id).map(drop),
            BuildTarget::Blob(_, size) if *size > self.builder.len() => Err(Fault::Parameter),
            BuildTarget::Blob(..) => Ok(()),
        }
    }

    /// Attaches the backing, which [`Build::check`] has accepted; true if it may cover a whole
    /// block.
    pub(in crate::gpu) fn finish(self, resources: &mut ResourceTable) -> Result<bool, Fault> {
        let Self { target, builder, charge, .. } = self;
        let backed = Backed { backing: builder.into_backing(), charge };
        let large = backed.backing.len() >= BLOCK_SIZE;
        match target {
            BuildTarget::Image(id) => resources.with_image(id, |image: &mut ResourceImage| {
                image.backed = Some(backed);
                Ok(())
            })?,
            BuildTarget::Blob(place, size) => {
                resources.insert(place, ResourceKind::GuestBlob(GuestBlob { size, backed }));
            }
        }
        Ok(large)
    }

    /// Takes the unfinished backing, to be freed.
    pub(in crate::gpu) fn abandon(self) -> Backed {
        Backed { backing: self.builder.into_backing(), charge: self.charge }
    }
}
