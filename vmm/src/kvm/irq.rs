// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt lines and notifications that bypass the monitor: irqfd and ioeventfd.
//!
//! A driver writes a notification register and KVM writes an eventfd; this costs no exit to the
//! monitor. A virtio device pulses its line (edge-triggered) by two system calls. To write an eventfd
//! would be one, but for a line of the interrupt controllers KVM leaves the rest to a thread of the
//! kernel's, for which the device's thread may have to give way. So only what interrupts rarely has
//! one: a serial line, a keyboard; and vhost-net, which is in the kernel.

use std::io;
use std::sync::Arc;

use devices::transport::{MmioInterrupt, Notifier};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;

/// KVM refused, or lines ran out.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// KVM refused an irqfd.
    #[error("cannot connect an event to interrupt line {gsi}: {source}")]
    Connect {
        /// The line.
        gsi: u32,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM refused an ioeventfd.
    #[error("cannot connect an event to address {address:#x}: {source}")]
    Notify {
        /// Guest-physical address.
        address: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The IOAPIC has 24 inputs.
    #[error("no free interrupt line for another device")]
    NoLineLeft,
}

/// Hands out the lines of virtio devices.
#[derive(Debug)]
pub struct IrqLines {
    next: u32,
}

impl Default for IrqLines {
    fn default() -> Self {
        Self { next: layout::IRQ_VIRTIO_FIRST }
    }
}

impl IrqLines {
    /// Allocates an unused line.
    ///
    /// # Errors
    ///
    /// [`IrqError::NoLineLeft`]: all lines are in use.
    pub fn take(&mut self) -> Result<u32, IrqError> {
        let gsi = self.next;
        if gsi > layout::IRQ_LAST {
            return Err(IrqError::NoLineLeft);
        }
        self.next += 1;
        Ok(gsi)
    }
}

/// Lets each write to `event` pulse line `gsi`.
///
/// # Errors
///
/// [`IrqError::Connect`]: KVM refuses the irqfd.
pub fn connect(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<(), IrqError> {
    vm.register_irqfd(event, gsi).map_err(|source| IrqError::Connect { gsi, source })
}

/// Lets `interrupt`, and each write to its event, pulse line `gsi`.
///
/// # Errors
///
/// [`IrqError::Connect`]: KVM refuses the irqfd.
pub fn connect_virtio(vm: &Arc<VmFd>, interrupt: &MmioInterrupt, gsi: u32) -> Result<(), IrqError> {
    connect(vm, interrupt.event(), gsi)?;
    let vm = Arc::clone(vm);
    interrupt.connect(move || pulse(&vm, gsi));
    Ok(())
}

/// Raises and lowers line `gsi`. KVM takes spin locks only.
fn pulse(vm: &VmFd, gsi: u32) -> io::Result<()> {
    for active in [true, false] {
        vm.set_irq_line(gsi, active).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Lets `notifier`, of a device whose window begins at `base`, trigger its event without an exit.
///
/// # Errors
///
/// [`IrqError::Notify`]: KVM refuses the ioeventfd.
pub fn notify(vm: &VmFd, base: u64, notifier: Notifier<'_>) -> Result<(), IrqError> {
    let address = base.saturating_add(notifier.offset);
    vm.register_ioevent(notifier.event, &IoEventAddress::Mmio(address), notifier.value)
        .map_err(|source| IrqError::Notify { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_distinct_and_end() {
        let mut lines = IrqLines::default();
        let taken: Vec<u32> = std::iter::from_fn(|| lines.take().ok()).collect();
        assert_eq!(taken, (5..=23).collect::<Vec<_>>());
        assert!(matches!(lines.take(), Err(IrqError::NoLineLeft)));
    }
}
