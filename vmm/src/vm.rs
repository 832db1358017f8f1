// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: what the builder leaves, and what can be done with it.

use std::sync::{Arc, Mutex};

use devices::balloon::Balloon;
use devices::display::Frames;
use devices::gpu::Gpu;
use devices::legacy::{KeyboardBusy, KeyboardController};
use kvm_ioctls::VmFd;
use mm::guest_ram::GuestRam;

use crate::vcpu::{ExitCounts, StartError, Vcpu, VcpuGroup};
use crate::vnc::VncSocket;

/// The display device and what it shows.
pub struct Screens {
    /// The device. To be locked on the event-loop thread, as the balloon is; viewers lock it too,
    /// for the time that one picture takes.
    pub gpu: Arc<Mutex<Gpu>>,
    /// Its frames, for any thread.
    pub frames: Frames,
    /// Where they can be watched, if anywhere.
    pub vnc: Option<VncSocket>,
}

/// A machine, from its first instruction to its end. Dropping it stops its vCPUs.
///
/// Its devices live on in the event loop, which holds what serves their queues.
pub struct Vm {
    // First: vCPUs must have stopped before anything they use goes.
    vcpus: Vcpus,
    counts: Vec<Arc<ExitCounts>>,
    keyboard: Arc<KeyboardController>,
    balloon: Option<Arc<Mutex<Balloon>>>,
    gpu: Option<Screens>,
    // Interrupt routing and notifications are undone when it closes.
    _fd: Arc<VmFd>,
    // Last: guest memory must outlive whoever has it mapped.
    ram: Arc<GuestRam>,
}

enum Vcpus {
    Built(Vec<Vcpu>),
    Started(VcpuGroup),
}

/// What the builder hands over.
pub(crate) struct Parts {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) keyboard: Arc<KeyboardController>,
    pub(crate) balloon: Option<Arc<Mutex<Balloon>>>,
    pub(crate) gpu: Option<Screens>,
    pub(crate) fd: Arc<VmFd>,
    pub(crate) ram: Arc<GuestRam>,
}

impl Vm {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { vcpus, keyboard, balloon, gpu, fd, ram } = parts;
        let counts = vcpus.iter().map(Vcpu::counts).collect();
        Self { vcpus: Vcpus::Built(vcpus), counts, keyboard, balloon, gpu, _fd: fd, ram }
    }

    /// Lets the vCPUs run. Does nothing if they were started before.
    pub fn start(&mut self) -> Result<(), StartError> {
        if let Vcpus::Built(vcpus) = &mut self.vcpus {
            let vcpus = std::mem::take(vcpus);
            self.vcpus = Vcpus::Started(VcpuGroup::start(vcpus, || ())?);
        }
        Ok(())
    }

    /// Brings all vCPUs out of guest code, and returns when they are. The guest's time stands
    /// still until [`resume`](Self::resume).
    pub fn pause(&self) {
        if let Vcpus::Started(group) = &self.vcpus {
            group.pause();
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
    pub fn send_ctrl_alt_del(&self) -> Result<(), KeyboardBusy> {
        self.keyboard.ctrl_alt_del()
    }

    /// Exits of each vCPU, by kind.
    pub fn exit_counts(&self) -> &[Arc<ExitCounts>] {
        &self.counts
    }

    /// The balloon, if the machine has one. Its queues are processed on the event-loop thread: other
    /// threads lock it for short, as the compactor does.
    pub fn balloon(&self) -> Option<&Arc<Mutex<Balloon>>> {
        self.balloon.as_ref()
    }

    /// The display device, if the machine has one.
    pub fn screens(&self) -> Option<&Screens> {
        self.gpu.as_ref()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}
