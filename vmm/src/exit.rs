// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a machine ended, and the signal that tells the threads that wait for it.

use std::fmt;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

/// How the guest reset itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetSource {
    /// The keyboard controller's pulse command (Linux: `reboot=k`).
    KeyboardController,
    /// The reset register that the FADT names (Linux: `reboot=a`, its default on our machine).
    AcpiRegister,
    /// Triple fault on one vCPU (Linux: `reboot=t`).
    TripleFault,
    /// A jump to the CPU's reset vector, where a PC has its firmware.
    ResetVector,
}

/// Why the machine ended. Only the first reason counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset. A microVM is not started again in the same process: that is
    /// left to the monitor's own supervisor.
    Reset(ResetSource),
    /// The host ended it: by a signal, or by a request.
    Stopped(String),
    /// The guest cannot continue because of its own error.
    GuestCrashed(String),
    /// The host failed us.
    HostError(String),
}

impl ExitReason {
    /// The exit status of the process: 0 shut down, 1 configuration or host error, 2 crashed.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Reset(_) | Self::Stopped(_) => 0,
            Self::HostError(_) => 1,
            Self::GuestCrashed(_) => 2,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "guest powered off"),
            Self::Reset(ResetSource::KeyboardController) => {
                write!(f, "guest reset through the keyboard controller")
            }
            Self::Reset(ResetSource::AcpiRegister) => {
                write!(f, "guest reset through the ACPI reset register")
            }
            Self::Reset(ResetSource::TripleFault) => {
                write!(f, "guest reset through a triple fault")
            }
            Self::Reset(ResetSource::ResetVector) => {
                write!(f, "guest reset through a jump to the reset vector")
            }
            Self::Stopped(by) => write!(f, "stopped by {by}"),
            Self::GuestCrashed(cause) => write!(f, "guest crashed: {cause}"),
            Self::HostError(cause) => write!(f, "host error: {cause}"),
        }
    }
}

/// Set once, by any thread, when the machine should stop; the event loop then returns the reason.
pub struct ExitSignal {
    reason: OnceLock<ExitReason>,
    wake: Box<dyn Fn() + Send + Sync>,
    also: OnceLock<EventFd>,
}

impl ExitSignal {
    /// A signal that calls `wake`, once, when the end is raised: it wakes the event loop.
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { reason: OnceLock::new(), wake: Box::new(wake), also: OnceLock::new() }
    }

    /// Has `event` written too when the end is raised; once.
    pub(crate) fn also_wake(&self, event: EventFd) {
        // A second one would need a second thread that watches for signals, which does not exist.
        let _ = self.also.set(event);
    }

    /// Ends the machine for `reason`, unless it already ends for another.
    pub fn raise(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            (self.wake)();
            if let Some(also) = self.also.get() {
                // Fails only when the counter is full: then the thread is awake already.
                let _ = also.write(1);
            }
        }
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }
}

impl fmt::Debug for ExitSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExitSignal").field(&self.reason.get()).finish()
    }
}
