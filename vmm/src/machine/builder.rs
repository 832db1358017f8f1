// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The numbered steps from a configuration to a machine that is ready to run.

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config,
};
use kvm_ioctls::{Kvm, VmFd};
use mm::backing;
use mm::guest_ram::GuestRam;

use super::assembly::Assembly;
use super::attach;
use super::device_thread::DeviceThread;
use super::error::BuildError;
use super::vm::{Vm, VmParts};
use super::{boot, cpus};
use crate::arch::layout;
use crate::config::{BackingKind, VmConfig};
use crate::event_loop::{LoopHandle, Subscriber};
use crate::kvm::{self, memory};
use crate::mmds::Mmds;
use crate::vcpu::Surroundings;

/// Builds the machine that `config` describes. Its vCPUs wait for [`Vm::start`], and only then do its
/// devices join the event loop behind `events`, so that a failure leaves nothing behind there.
/// Interfaces on which the guest reaches the metadata service serve `mmds`.
///
/// # Errors
///
/// The first failure, in one line for the user.
pub fn build(config: &VmConfig, events: &LoopHandle, mmds: &Mmds) -> Result<Vm, BuildError> {
    // 1. RAM, laid out around the hole below 4 GiB. Nothing of it is allocated yet.
    let ram = Arc::new(reserve_ram(config)?);

    // 2. A machine without devices: interrupt controllers, timer, RAM.
    let kvm = kvm::open()?;
    let vm = Arc::new(create_vm(&kvm)?);
    // SAFETY: `Vm` holds `ram` and drops it after vCPUs and VM, and so does the GPU's window,
    // which is the only other holder; before there is one, both are locals here and `ram` is the
    // older, so dropped later.
    unsafe { memory::map_ram(&vm, &ram)? };

    // 3. Devices, on the buses that vCPUs look them up on.
    let exit = Arc::clone(events.exit());
    let mut machine = Assembly::new(config, Arc::clone(&vm), Arc::clone(&ram), exit, mmds);
    let devices = attach::all(&mut machine)?;

    // 4. Kernel, initrd and boot parameters.
    let kernel = boot::load(config, &ram, &machine.windows)?;

    // 5. vCPUs, the first of them at the kernel's first instruction.
    machine.charge_threads(machine.threads.len() as u64)?;
    let Assembly {
        ports,
        mmio,
        exit,
        on_main,
        threads,
        transports,
        pages,
        budgets,
        host_threads,
        thread_charges,
        ..
    } = machine;
    let around = Surroundings { ports: Arc::new(ports), mmio: Arc::new(mmio), exit };
    let vcpus = cpus::create(&kvm, &vm, config, &ram, &kernel, &around)?;

    // 6. The threads that serve devices.
    let threads = threads.into_iter().map(start_thread).collect::<Result<Vec<_>, _>>()?;
    Ok(Vm::new(VmParts {
        vcpus,
        on_main,
        events: events.clone(),
        threads,
        transports,
        pages,
        budgets,
        host_threads,
        thread_charges,
        devices,
        fd: vm,
        ram,
    }))
}

fn reserve_ram(config: &VmConfig) -> Result<GuestRam, BuildError> {
    let layout = config.layout()?;
    let kind = match config.backing() {
        BackingKind::Thp => backing::BackingKind::Thp,
        BackingKind::Small => backing::BackingKind::Small,
        BackingKind::Memfd => backing::BackingKind::Memfd,
        BackingKind::Hugetlb2M => backing::BackingKind::Hugetlb2M,
        BackingKind::Hugetlb1G => backing::BackingKind::Hugetlb1G,
    };
    Ok(GuestRam::new(layout, kind)?)
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let vm = kvm.create_vm().map_err(BuildError::machine("create a virtual machine"))?;
    // The order is KVM's: both addresses before the first vCPU, the interrupt controllers before
    // the timer.
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(BuildError::machine("place the identity map page"))?;
    vm.set_tss_address(layout::TSS).map_err(BuildError::machine("place the TSS pages"))?;
    vm.create_irq_chip().map_err(BuildError::machine("create interrupt controllers"))?;
    mask_pics(&vm)?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(BuildError::machine("create the interval timer"))?;
    Ok(vm)
}

/// Masks all lines of both 8259s. KVM starts them unmasked with vectors from 0, so a guest that
/// never sets them up would see the first interrupt as a CPU exception.
fn mask_pics(vm: &VmFd) -> Result<(), BuildError> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(BuildError::machine("read an interrupt controller"))?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip).map_err(BuildError::machine("mask an interrupt controller"))?;
    }
    Ok(())
}

fn start_thread(
    (name, subscribers): (String, Vec<Subscriber>),
) -> Result<DeviceThread, BuildError> {
    let thread = DeviceThread::spawn(&name, subscribers);
    thread.map_err(|source| BuildError::Thread { name, source })
}
