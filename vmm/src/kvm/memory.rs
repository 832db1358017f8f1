// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest RAM as KVM knows it: one memory slot a region.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use mm::guest_ram::GuestRam;
use mm::units::GuestRange;

/// KVM refused a region of RAM.
#[derive(Debug, thiserror::Error)]
#[error("cannot register guest memory {range} with KVM: {source}")]
pub struct SlotError {
    range: GuestRange,
    source: kvm_ioctls::Error,
}

/// Makes `ram` the memory of `vm`, from slot 0 up.
///
/// # Errors
///
/// KVM does not take a region.
///
/// # Safety
///
/// `ram` must stay mapped for as long as `vm` or a vCPU of it exists.
pub unsafe fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), SlotError> {
    for (slot, region) in (0..).zip(ram.regions()) {
        let range = region.guest();
        let slot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: range.address().0,
            memory_size: range.bytes().0,
            userspace_addr: region.host().addr() as u64,
            flags: 0,
        };
        // SAFETY: the region's host range is mapped, writable memory that no code in this process
        // holds references into (guest memory is accessed as volatile only), and the caller
        // keeps it mapped.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| SlotError { range, source })?;
    }
    Ok(())
}
