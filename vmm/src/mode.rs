// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences outside the API in Firecracker mode: names, paths and codes that its clients and
//! supervisors expect. `docs/api.md` has the list.

use tracing::{error, info};

use crate::config::LogLevel;
use crate::ending_signals;
use crate::exit::ExitReason;

/// How the monitor was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartMode {
    /// `ballast run`: itself.
    #[default]
    Ballast,
    /// `ballast --api-sock …`, or by the name `firecracker`: in Firecracker's place.
    Firecracker,
}

/// Firecracker's exit codes (`FcExitCode`) other than 0.
pub mod firecracker_exit {
    /// Any error without a specific code.
    pub const GENERIC: u8 = 1;
    /// `--level` names no level.
    pub const BAD_CONFIGURATION: u8 = 152;
    /// The arguments cannot be parsed.
    pub const ARGUMENTS: u8 = 153;
    /// SIGXCPU, which Firecracker catches.
    pub const SIGXCPU: u8 = 154;
    /// SIGHUP, which Firecracker catches.
    pub const SIGHUP: u8 = 156;
}

impl StartMode {
    /// Name of a vCPU's thread, which pinning tools look for.
    pub fn vcpu_thread(self, number: u8) -> String {
        match self {
            Self::Ballast => format!("vcpu{number}"),
            Self::Firecracker => format!("fc_vcpu {number}"),
        }
    }

    /// Name of the API's thread.
    pub fn api_thread(self) -> &'static str {
        match self {
            Self::Ballast => "api",
            Self::Firecracker => "fc_api",
        }
    }

    /// Whether the log goes to standard output instead of standard error if no file is named.
    pub fn logs_to_stdout(self) -> bool {
        self == Self::Firecracker
    }

    /// The default level of a log without a file.
    pub fn log_level(self) -> LogLevel {
        match self {
            Self::Ballast => LogLevel::Warning,
            Self::Firecracker => LogLevel::Info,
        }
    }

    /// Whether the socket's file stays when the monitor ends.
    pub fn keeps_socket(self) -> bool {
        self == Self::Firecracker
    }

    /// Logs Firecracker's last lines, which supervisors look for. A signal leaves it no time for them.
    pub fn farewell(self, reason: &ExitReason) {
        if self != Self::Firecracker || self.dies_of(reason).is_some() {
            return;
        }
        info!("Vmm is stopping.");
        match self.exit_code(reason) {
            0 => info!("Firecracker exiting successfully. exit_code=0"),
            code => error!("Firecracker exiting with error. exit_code={code}"),
        }
    }

    /// The exit status for `reason`.
    pub fn exit_code(self, reason: &ExitReason) -> u8 {
        match (self, reason) {
            (Self::Ballast, reason) => reason.code(),
            (Self::Firecracker, ExitReason::Stopped(by)) if by == "SIGHUP" => {
                firecracker_exit::SIGHUP
            }
            (Self::Firecracker, ExitReason::Stopped(by)) if by == "SIGXCPU" => {
                firecracker_exit::SIGXCPU
            }
            (Self::Firecracker, reason) if reason.code() == 0 => 0,
            (Self::Firecracker, _) => firecracker_exit::GENERIC,
        }
    }

    /// The signal that should terminate the process after an orderly shutdown, as its parent
    /// expects.
    pub fn dies_of(self, reason: &ExitReason) -> Option<libc::c_int> {
        match (self, reason) {
            (Self::Firecracker, ExitReason::Stopped(by)) => match ending_signals::number(by)? {
                libc::SIGHUP | libc::SIGXCPU => None,
                uncaught => Some(uncaught),
            },
            _ => None,
        }
    }
}

/// Ends the process by `signal`, as if it had never been caught.
pub fn die_of(signal: libc::c_int) {
    // SAFETY: sets a disposition that is no function.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // Fails for no signal that there is; and then the caller's exit status has to do.
    let _ = vmm_sys_util::signal::unblock_signal(signal);
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_firecrackers() {
        let stopped = |by: &str| ExitReason::Stopped(by.into());
        let code = |reason: ExitReason| StartMode::Firecracker.exit_code(&reason);
        assert_eq!(code(ExitReason::PowerOff), 0);
        assert_eq!(code(stopped("SIGHUP")), 156);
        assert_eq!(code(ExitReason::GuestCrashed("x".into())), 1);
        assert_eq!(StartMode::Firecracker.dies_of(&stopped("SIGTERM")), Some(libc::SIGTERM));
        assert_eq!(StartMode::Firecracker.dies_of(&stopped("SIGUSR1")), Some(libc::SIGUSR1));
        assert_eq!(StartMode::Firecracker.dies_of(&stopped("SIGXCPU")), None);
        assert_eq!(code(stopped("SIGXCPU")), 154);
        assert_eq!(StartMode::Firecracker.dies_of(&stopped("a request")), None);
        assert_eq!(StartMode::Ballast.dies_of(&stopped("SIGTERM")), None);
        assert_eq!(StartMode::Ballast.exit_code(&ExitReason::GuestCrashed("x".into())), 2);
        assert_eq!(
            StartMode::Firecracker.vcpu_thread(254).len(),
            11,
            "the kernel keeps 15 letters"
        );
    }
}
