// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a machine cannot be built. Each error says in one line what failed and where.

use std::error::Error;
use std::io;

use linux_loader::{cmdline, loader};
use mm::budget::BudgetError;
use mm::guest_ram::GuestRamError;
use mm::layout::LayoutError;

use super::bus::BusError;
use crate::arch::acpi::AcpiError;
use crate::arch::handover::HandoverError;
use crate::arch::kernel::KernelError;
use crate::arch::registers::RegisterError;
use crate::event_loop::EventLoopError;
use crate::kvm::KvmError;
use crate::kvm::irq::IrqError;
use crate::kvm::memory::SlotError;
use crate::vcpu::StartError;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nothing to boot was configured.
    #[error("no kernel is configured")]
    NoBootSource,
    /// Memory of such a size cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host cannot provide the memory.
    #[error(transparent)]
    Ram(#[from] GuestRamError),
    /// The host has no usable KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused a part of the machine.
    #[error("KVM cannot {what}: {source}")]
    Machine {
        /// The failed operation.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than this KVM has.
    #[error("{asked} vCPUs exceed this host's KVM limit of {limit}")]
    TooManyVcpus {
        /// vCPUs configured.
        asked: u8,
        /// KVM's limit.
        limit: usize,
    },
    /// KVM refused guest memory.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// An interrupt line or a notification cannot be connected.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Two devices have overlapping addresses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The space for virtio-mmio windows is used up.
    #[error("no free address for another virtio device")]
    NoWindowLeft,
    /// An eventfd cannot be created.
    #[error("cannot create an event: {0}")]
    Event(io::Error),
    /// A device cannot be made as configured.
    #[error("{device}: {source}")]
    Device {
        /// Its section in the configuration.
        device: &'static str,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A device's thread cannot be started.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// Its name.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// The configuration allows fewer threads than the devices need.
    #[error("{0}: raise memory.host_threads")]
    Threads(#[from] BudgetError),
    /// Kernel or initrd cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line cannot be used.
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::Error),
    /// The command line is longer than a kernel reads.
    #[error("cannot write the kernel command line: {0}")]
    CmdlineLoad(loader::Error),
    /// Boot structures do not fit.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Tables of the first MiB do not fit.
    #[error("boot tables do not fit in guest memory: {0}")]
    BootTables(#[from] vm_memory::GuestMemoryError),
    /// A vCPU's initial state cannot be set.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A vCPU's thread cannot be started.
    #[error(transparent)]
    Vcpu(#[from] StartError),
    /// The event loop accepts no subscribers.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
}

impl BuildError {
    /// KVM's error for `what`.
    pub(super) fn machine(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Machine { what, source }
    }

    /// Error of the device of section `device`.
    pub(super) fn device<E>(device: &'static str) -> impl Fn(E) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        move |source| Self::Device { device, source: source.into() }
    }
}
