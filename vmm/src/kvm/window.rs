// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GPU's host-visible window: host memory that appears in guest-physical address space above
//! RAM, a KVM memory slot for each mapping.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use devices::gpu::{HostRegion, HostWindow};
use devices::virtio::SharedRegion;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use mm::guest_ram::GuestRam;

/// First slot of the window; RAM has those below.
const FIRST_SLOT: u32 = 64;
/// Limit on mappings; KVM has at least 509 slots.
pub const MAX_SLOTS: u32 = 384;
/// The first slot that is free for others.
pub(super) const END_SLOT: u32 = FIRST_SLOT + MAX_SLOTS;

/// A mapping: its slot, and the memory that is there.
struct SlotMapping {
    slot: u32,
    // Kept alive for the guest, which may write to it until the slot is removed.
    memory: Arc<dyn HostRegion>,
}

/// The window of one machine.
pub struct KvmWindow {
    region: SharedRegion,
    /// By offset in the window.
    mappings: BTreeMap<u64, SlotMapping>,
    vm: Arc<VmFd>,
    // After `vm`: as long as there is a machine, its RAM must be there.
    _ram: Arc<GuestRam>,
}

impl KvmWindow {
    /// An empty window at `region`, which is above RAM.
    pub fn new(region: SharedRegion, vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Self {
        Self { region, mappings: BTreeMap::new(), vm, _ram: ram }
    }

    fn free_slot(&self) -> Option<u32> {
        let taken = |slot: &u32| self.mappings.values().any(|mapping| mapping.slot == *slot);
        (FIRST_SLOT..END_SLOT).find(|slot| !taken(slot))
    }

    /// Describes slot `slot`: memory at `offset`, or its removal.
    fn slot(
        &self,
        slot: u32,
        offset: u64,
        memory: Option<&dyn HostRegion>,
    ) -> kvm_userspace_memory_region {
        let bytes = memory.map(HostRegion::bytes);
        kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: self.region.addr.0 + offset,
            memory_size: bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            userspace_addr: bytes.map_or(0, |bytes| bytes.ptr_guard_mut().as_ptr() as u64),
        }
    }
}

impl HostWindow for KvmWindow {
    fn size(&self) -> u64 {
        self.region.len
    }

    fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> io::Result<()> {
        let Some(slot) = self.free_slot() else { return Err(io::ErrorKind::QuotaExceeded.into()) };
        let region = self.slot(slot, offset, Some(&*memory));
        // SAFETY: the memory stays mapped where it is while `memory` lives (`HostRegion`), and
        // `mappings` keeps it until the slot is gone. There are no references into it: it is
        // accessed as volatile memory only.
        unsafe { self.vm.set_user_memory_region(region) }?;
        self.mappings.insert(offset, SlotMapping { slot, memory });
        Ok(())
    }

    fn unmap(&mut self, offset: u64) -> io::Result<()> {
        let Some(mapping) = self.mappings.get(&offset) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let region = self.slot(mapping.slot, offset, None);
        // SAFETY: a slot of size 0 only takes memory away; KVM returns when no vCPU has it mapped.
        unsafe { self.vm.set_user_memory_region(region) }?;
        self.mappings.remove(&offset);
        Ok(())
    }
}

impl Drop for KvmWindow {
    fn drop(&mut self) {
        for offset in self.mappings.keys().copied().collect::<Vec<u64>>() {
            if let Err(error) = self.unmap(offset)
                && let Some(mapping) = self.mappings.remove(&offset)
            {
                tracing::error!(offset, %error, "cannot unmap host memory from the guest: not \
                                                 freeing it");
                std::mem::forget(mapping.memory);
            }
        }
    }
}
