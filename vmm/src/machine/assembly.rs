// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine while devices are added to it: buses, interrupt lines, windows, threads.
//!
//! A device lives on the main thread's event loop or on a thread of its own ([`Home`]). The
//! contract of a device is the same in both places:
//!
//! - *Activation, reset, configuration accesses* come from vCPU threads, under the device's mutex.
//! - *Pause* stops vCPUs only. A device goes on with requests that the guest made before, and its
//!   interrupts stay pending in KVM until the guest runs again.
//! - *Reset* by the driver: the device's `reset` returns when it no longer touches guest memory, so
//!   a device with requests in flight on a ring or another thread cancels or awaits them there.
//! - *Teardown*: vCPUs stop first, then each device thread ends after the turn that it is in and is
//!   joined, then KVM's machine and guest memory go.

use std::sync::Arc;

use devices::transport::MmioTransport;
use devices::virtio::{Runner, SharedDevice};
use kvm_ioctls::VmFd;
use mm::budget::{Budget, Charge};
use mm::guest_ram::GuestRam;
use mm::units::SaturatingInto;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus::{Bus, BusDevice, BusError};
use super::error::BuildError;
use crate::arch::acpi::MmioWindow;
use crate::arch::layout;
use crate::config::VmConfig;
use crate::event_loop::Subscriber;
use crate::exit::ExitSignal;
use crate::kvm::irq::{self, IrqLines};
use crate::kvm::register_page::MappedPage;
use crate::mmds::Mmds;

/// Which thread serves a device's queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// The main thread's event loop, for devices with short turns.
    Main,
    /// A separate thread with this name, such as `block-rootfs` (the kernel keeps 15 bytes).
    Thread(String),
}

/// A machine under construction, to which `attach/` adds devices.
pub struct Assembly<'a> {
    /// The configuration to build.
    pub config: &'a VmConfig,
    /// KVM's machine.
    pub vm: Arc<VmFd>,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// The metadata that interfaces serve.
    pub mmds: &'a Mmds,
    /// Where a device announces the machine's end.
    pub exit: Arc<ExitSignal>,
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) windows: Vec<MmioWindow>,
    /// The transport of each window, with its device's name for metrics.
    pub(super) transports: Vec<(&'static str, Arc<MmioTransport>)>,
    /// Registers that the guest reads without an exit.
    pub(super) pages: Vec<MappedPage>,
    /// Budgets for resources that the guest and clients can use, for metrics.
    pub budgets: Vec<Arc<Budget>>,
    /// Threads of devices and of their users.
    pub host_threads: Arc<Budget>,
    /// What devices have taken of them, for as long as the machine lives.
    pub(super) thread_charges: Vec<Charge>,
    lines: IrqLines,
    /// Subscribers of the main thread's event loop.
    pub(super) on_main: Vec<Subscriber>,
    /// Threads to be started, each with its subscribers.
    pub(super) threads: Vec<(String, Vec<Subscriber>)>,
}

impl<'a> Assembly<'a> {
    /// A machine without devices.
    pub(super) fn new(
        config: &'a VmConfig,
        vm: Arc<VmFd>,
        ram: Arc<GuestRam>,
        exit: Arc<ExitSignal>,
        mmds: &'a Mmds,
    ) -> Self {
        let host_threads = Budget::count("threads", config.memory.host_threads.into());
        Self {
            config,
            mmds,
            vm,
            ram,
            exit,
            ports: Bus::default(),
            mmio: Bus::default(),
            windows: Vec::new(),
            transports: Vec::new(),
            pages: Vec::new(),
            budgets: vec![Arc::clone(&host_threads)],
            host_threads,
            thread_charges: Vec::new(),
            lines: IrqLines::default(),
            on_main: Vec::new(),
            threads: Vec::new(),
        }
    }

    /// Puts a virtio device behind the next virtio-mmio window; the thread of `home` serves its
    /// queues. `device` must not be locked. Returns the transport, through which a device's other
    /// sources of events have its queues processed.
    ///
    /// # Errors
    ///
    /// Where windows or interrupt lines have run out, or KVM or the host refuses.
    pub fn add_virtio(
        &mut self,
        device: SharedDevice,
        home: &Home,
    ) -> Result<Arc<MmioTransport>, BuildError> {
        let gsi = self.lines.take()?;
        let number = self.windows.len();
        let window = next_window(number, gsi)?;
        let base = u64::from(window.base);
        let name = device_name(device.lock().device_type());
        let transport = MmioTransport::new(Arc::clone(self.ram.memory()), device, event()?)
            .map(Arc::new)
            .map_err(BuildError::Event)?;
        irq::connect_virtio(&self.vm, transport.interrupt(), gsi)?;
        for notifier in transport.notifiers() {
            irq::notify(&self.vm, base, notifier)?;
        }
        self.mmio.insert(base, layout::MMIO_SIZE, transport.clone())?;
        let page = MappedPage::map(&self.vm, number.saturating_u32(), base, &transport);
        self.pages.extend(page);
        self.windows.push(window);
        self.transports.push((name, Arc::clone(&transport)));
        self.subscribe(Box::new(Runner::new(transport.clone())), home);
        Ok(transport)
    }

    /// Lets the thread of `home` serve `subscriber`: timers and completions of a device. The builder
    /// charges the threads.
    pub fn subscribe(&mut self, subscriber: Subscriber, home: &Home) {
        let Home::Thread(name) = home else { return self.on_main.push(subscriber) };
        match self.threads.iter_mut().find(|(known, _)| known == name) {
            Some((_, subscribers)) => subscribers.push(subscriber),
            None => self.threads.push((name.clone(), vec![subscriber])),
        }
    }

    /// Takes `count` threads for as long as the machine lives.
    ///
    /// # Errors
    ///
    /// Where the budget has fewer left.
    pub fn charge_threads(&mut self, count: u64) -> Result<(), BuildError> {
        self.thread_charges.push(self.host_threads.try_charge(count)?);
        Ok(())
    }

    /// Puts `device` at `len` I/O ports from `start`.
    ///
    /// # Errors
    ///
    /// Where another device has one of them.
    pub fn add_ports(
        &mut self,
        start: u16,
        len: u16,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        self.ports.insert(start.into(), len.into(), device)
    }
}

/// The name that metrics have for a device of this type (virtio 1.3, chapter 5).
fn device_name(device_type: u32) -> &'static str {
    match device_type {
        1 => "net",
        2 => "block",
        4 => "entropy",
        5 => "balloon",
        16 => "gpu",
        19 => "vsock",
        _ => "device",
    }
}

/// Window `number`, with interrupt line `gsi`.
fn next_window(number: usize, gsi: u32) -> Result<MmioWindow, BuildError> {
    let base = (number as u64)
        .checked_mul(layout::MMIO_SIZE)
        .and_then(|offset| offset.checked_add(layout::MMIO_START.0))
        .filter(|base| *base < layout::MMIO_END.0)
        .and_then(|base| u32::try_from(base).ok())
        .ok_or(BuildError::NoWindowLeft)?;
    Ok(MmioWindow { base, gsi })
}

/// An eventfd for an interrupt.
pub(super) fn event() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BuildError::Event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_and_end_below_the_ioapic() {
        assert_eq!(next_window(0, 5).unwrap(), MmioWindow { base: 0xd000_0000, gsi: 5 });
        assert_eq!(next_window(3, 8).unwrap(), MmioWindow { base: 0xd000_3000, gsi: 8 });
        let room = (layout::MMIO_END.0 - layout::MMIO_START.0) / layout::MMIO_SIZE;
        let room = usize::try_from(room).unwrap();
        assert!(next_window(room - 1, 5).is_ok());
        for number in [room, usize::MAX] {
            assert!(matches!(next_window(number, 5), Err(BuildError::NoWindowLeft)), "{number}");
        }
    }
}
