// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages of devices' registers that the guest reads without an exit: a read-only memory slot each.
//! Writes to them still reach ioeventfds and the monitor.

use std::sync::Arc;

use devices::transport::MmioTransport;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};

use super::window;

/// First slot: behind those of the GPU's window.
const FIRST_SLOT: u32 = window::END_SLOT;

/// A page in the guest's address space until this is dropped.
pub struct MappedPage {
    vm: Arc<VmFd>,
    slot: u32,
    // Has the page, and keeps it where it is.
    transport: Arc<MmioTransport>,
}

impl MappedPage {
    /// Shows the page of `transport`, device `number` of `vm`, at `address`; none if the device has
    /// no such page or KVM takes none: then reads are exits, as before.
    pub fn map(
        vm: &Arc<VmFd>,
        number: u32,
        address: u64,
        transport: &Arc<MmioTransport>,
    ) -> Option<Self> {
        let page = transport.page()?;
        if !vm.check_extension(Cap::ReadonlyMem) {
            return None;
        }
        let slot = FIRST_SLOT + number;
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: size_of_val(page) as u64,
            userspace_addr: std::ptr::from_ref(page) as u64,
        };
        // SAFETY: the page consists of atomics, which the guest can only read. It stays where it is
        // while the transport lives, which is kept until the slot is gone.
        match unsafe { vm.set_user_memory_region(region) } {
            Ok(()) => Some(Self { vm: Arc::clone(vm), slot, transport: Arc::clone(transport) }),
            Err(error) => {
                tracing::debug!(%error, "registers cannot be read without an exit");
                None
            }
        }
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        let region = kvm_userspace_memory_region { slot: self.slot, ..Default::default() };
        // SAFETY: a slot of size 0 only takes memory away; KVM returns when no vCPU has it mapped.
        if let Err(error) = unsafe { self.vm.set_user_memory_region(region) } {
            tracing::error!(%error, "cannot unmap registers from the guest: not freeing them");
            std::mem::forget(Arc::clone(&self.transport));
        }
    }
}
