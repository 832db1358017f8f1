// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vCPUs: a thread each, that runs guest code until it has something to ask.
//!
//! - `mod.rs` (here): the loop around KVM_RUN
//! - `exits.rs`: the kinds of exits and their counters
//! - `diagnosis.rs`: diagnosis of an exit that the monitor cannot serve
//! - `kick.rs`: interrupts a thread inside KVM_RUN
//! - `group.rs`: all vCPUs of a machine: start, pause, resume, stop

mod diagnosis;
mod exits;
mod group;
mod kick;

use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

pub use exits::{ExitCounts, ExitKind, ServedTime};
pub use group::{PauseError, StartError, VcpuGroup};

use crate::exit::{ExitReason, ExitSignal, ResetSource};
use crate::machine::bus::Bus;

/// Environment of the vCPUs of one machine.
#[derive(Clone)]
pub struct Surroundings {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Guest-physical addresses that are not RAM.
    pub mmio: Arc<Bus>,
    /// Where an end is announced.
    pub exit: Arc<ExitSignal>,
}

/// One vCPU, before and while its thread runs it.
pub struct Vcpu {
    number: u8,
    fd: VcpuFd,
    around: Surroundings,
    counts: Arc<ExitCounts>,
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The thread was kicked: there is a command.
    Kicked,
    /// The machine has ended; the reason is announced.
    Ended,
}

impl Vcpu {
    /// vCPU `number`, ready to run.
    pub fn new(number: u8, fd: VcpuFd, around: Surroundings) -> Self {
        Self { number, fd, around, counts: Arc::default() }
    }

    /// Its exit counters.
    pub fn counts(&self) -> Arc<ExitCounts> {
        Arc::clone(&self.counts)
    }

    /// Runs guest code until there is a command or an end.
    fn run(&mut self) -> Left {
        loop {
            let exit = self.fd.run();
            let started = Instant::now();
            let kind = match exit {
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.around.ports.write(port.into(), data);
                    self.counts.served(ExitKind::IoOut, started.elapsed());
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.around.ports.read(port.into(), data);
                    self.counts.served(ExitKind::IoIn, started.elapsed());
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    self.around.mmio.write(address, data);
                    self.counts.served(ExitKind::MmioWrite, started.elapsed());
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    self.around.mmio.read(address, data);
                    self.counts.served(ExitKind::MmioRead, started.elapsed());
                    continue;
                }
                Ok(VcpuExit::Intr) => ExitKind::Interrupted,
                Ok(exit) => {
                    let kind = ExitKind::of(&exit);
                    let reason = end_of(&exit);
                    self.counts.add(kind);
                    return self.end(reason);
                }
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        self.counts.add(ExitKind::Interrupted);
                        // Cleared before checking for a command, so that a later kick is not lost.
                        self.fd.set_kvm_immediate_exit(0);
                        return Left::Kicked;
                    }
                    // An application processor that waits for its SIPI was woken spuriously.
                    libc::EAGAIN => ExitKind::Interrupted,
                    _ => {
                        self.counts.add(ExitKind::Failed);
                        let cause = format!("KVM_RUN of vCPU {}: {error}", self.number);
                        return self.end(Some(ExitReason::HostError(cause)));
                    }
                },
            };
            self.counts.add(kind);
        }
    }

    fn end(&mut self, reason: Option<ExitReason>) -> Left {
        let reason = reason.unwrap_or_else(|| diagnosis::diagnose(self.number, &mut self.fd));
        self.around.exit.raise(reason);
        Left::Ended
    }
}

/// The reason to stop for `exit`, if it can be determined without further KVM calls.
fn end_of(exit: &VcpuExit<'_>) -> Option<ExitReason> {
    match exit {
        VcpuExit::Shutdown => Some(ExitReason::Reset(ResetSource::TripleFault)),
        VcpuExit::SystemEvent(event, _) => match *event {
            KVM_SYSTEM_EVENT_SHUTDOWN => Some(ExitReason::PowerOff),
            KVM_SYSTEM_EVENT_RESET => Some(ExitReason::Reset(ResetSource::AcpiRegister)),
            KVM_SYSTEM_EVENT_CRASH => {
                Some(ExitReason::GuestCrashed("the guest reported a crash".into()))
            }
            _ => None,
        },
        _ => None,
    }
}
