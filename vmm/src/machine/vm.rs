// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A built machine and its operations.

use std::sync::Arc;

use devices::balloon::Balloon;
use devices::legacy::KeyboardBusy;
use devices::transport::MmioTransport;
use devices::virtio::{DeviceLock, LongestHold};
use kvm_ioctls::VmFd;
use mm::budget::{Budget, Charge};
use mm::guest_ram::GuestRam;

use super::attach::Devices;
use super::attach::gpu::Screens;
use super::device_thread::DeviceThread;
use super::error::BuildError;
use crate::event_loop::{LoopHandle, Subscriber};
use crate::kvm::register_page::MappedPage;
use crate::mode::StartMode;
use crate::vcpu::{ExitCounts, PauseError, Vcpu, VcpuGroup};

/// A machine, from its first instruction to its end. Dropping it stops its vCPUs.
///
/// Devices on the main thread stay in its event loop, which owns their queue runners; the threads
/// of other devices end with the machine.
pub struct Vm {
    // First: vCPUs must stop before anything they use is dropped.
    vcpus: Vcpus,
    counts: Vec<Arc<ExitCounts>>,
    /// Subscribers that the event loop gets at the start.
    on_main: Vec<Subscriber>,
    events: LoopHandle,
    // No device thread may use the machine's descriptors after they close.
    threads: Vec<DeviceThread>,
    transports: Vec<(&'static str, Arc<MmioTransport>)>,
    _pages: Vec<MappedPage>,
    budgets: Vec<Arc<Budget>>,
    host_threads: Arc<Budget>,
    _thread_charges: Vec<Charge>,
    devices: Devices,
    // Interrupt routing and notifications are undone when it closes.
    _fd: Arc<VmFd>,
    // Last: guest memory must outlive everything that has it mapped.
    ram: Arc<GuestRam>,
}

enum Vcpus {
    Built(Vec<Vcpu>),
    Started(VcpuGroup),
}

/// Parts passed by the builder.
pub(crate) struct VmParts {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) on_main: Vec<Subscriber>,
    pub(crate) events: LoopHandle,
    pub(crate) threads: Vec<DeviceThread>,
    pub(crate) transports: Vec<(&'static str, Arc<MmioTransport>)>,
    pub(crate) pages: Vec<MappedPage>,
    pub(crate) budgets: Vec<Arc<Budget>>,
    pub(crate) host_threads: Arc<Budget>,
    pub(crate) thread_charges: Vec<Charge>,
    pub(crate) devices: Devices,
    pub(crate) fd: Arc<VmFd>,
    pub(crate) ram: Arc<GuestRam>,
}

impl Vm {
    pub(crate) fn new(parts: VmParts) -> Self {
        let VmParts {
            vcpus,
            on_main,
            events,
            threads,
            transports,
            pages,
            budgets,
            host_threads,
            thread_charges,
            devices,
            fd,
            ram,
        } = parts;
        let counts = vcpus.iter().map(Vcpu::counts).collect();
        Self {
            vcpus: Vcpus::Built(vcpus),
            counts,
            on_main,
            events,
            threads,
            transports,
            _pages: pages,
            budgets,
            host_threads,
            _thread_charges: thread_charges,
            devices,
            _fd: fd,
            ram,
        }
    }

    /// Leaves the sockets of devices where they are when the machine ends, as Firecracker does.
    pub fn keep_sockets(&mut self) {
        if let Some(vsock) = &mut self.devices.vsock {
            vsock.file.keep();
        }
    }

    /// Lets the vCPUs run, on threads named by `mode`, and adds devices to the event loop. Does
    /// nothing if they were started before.
    ///
    /// # Errors
    ///
    /// [`BuildError`]: a thread cannot be started, or the event loop has ended. Drop the
    /// machine then, which leaves nothing behind.
    pub fn start(&mut self, mode: StartMode) -> Result<(), BuildError> {
        if let Vcpus::Built(vcpus) = &mut self.vcpus {
            let vcpus = std::mem::take(vcpus);
            self.vcpus = Vcpus::Started(VcpuGroup::start(vcpus, mode, || ())?);
        }
        // What vCPUs have notified in the meantime is still there.
        for subscriber in self.on_main.drain(..) {
            self.events.add(subscriber)?;
        }
        Ok(())
    }

    /// Stops all vCPUs and returns when they have left guest code. The guest's clock is stopped
    /// until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// If a vCPU has not stopped after one second; all vCPUs then continue.
    pub fn pause(&self) -> Result<(), PauseError> {
        match &self.vcpus {
            Vcpus::Started(group) => group.pause(),
            Vcpus::Built(_) => Ok(()),
        }
    }

    /// Lets paused vCPUs go on.
    pub fn resume(&self) {
        if let Vcpus::Started(group) = &self.vcpus {
            group.resume();
        }
    }

    /// Whether the vCPUs are paused.
    pub fn paused(&self) -> bool {
        matches!(&self.vcpus, Vcpus::Started(group) if group.paused())
    }

    /// Presses Ctrl, Alt and Del on the keyboard of the guest.
    ///
    /// # Errors
    ///
    /// [`KeyboardBusy`]: the guest has not read earlier keys.
    pub fn send_ctrl_alt_del(&self) -> Result<(), KeyboardBusy> {
        self.devices.platform.keyboard.ctrl_alt_del()
    }

    /// The longest hold of each virtio device's lock, by window and kind.
    pub fn longest_holds(&self) -> impl Iterator<Item = (String, &LongestHold)> {
        self.transports.iter().enumerate().map(|(number, (name, transport))| {
            (format!("{number}_{name}"), transport.longest_hold())
        })
    }

    /// The longest turn of each device thread's event loop, by its name.
    pub fn longest_turns(&self) -> impl Iterator<Item = (&str, &LongestHold)> {
        self.threads.iter().map(|thread| (thread.name(), thread.longest_turn()))
    }

    /// Budgets for resources that the guest and clients can use.
    pub fn budgets(&self) -> &[Arc<Budget>] {
        &self.budgets
    }

    /// Threads that devices and requests may have, and how many they do.
    pub fn host_threads(&self) -> &Arc<Budget> {
        &self.host_threads
    }

    /// Its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Exits of each vCPU, by kind.
    pub fn exit_counts(&self) -> &[Arc<ExitCounts>] {
        &self.counts
    }

    /// The balloon, if the machine has one. Its queues are processed on the event-loop thread: other
    /// threads lock it for short, as the compactor does.
    pub fn balloon(&self) -> Option<&Arc<DeviceLock<Balloon>>> {
        self.devices.balloon.as_ref()
    }

    /// The display device, if the machine has one.
    pub fn screens(&self) -> Option<&Screens> {
        self.devices.gpu.as_ref()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}
