// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why the monitor refuses an action, in the words that the client reads.

use crate::config::Faults;

/// Why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It needs a machine. Clients of Firecracker know this sentence and the next.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// It is settled when the machine starts.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It needs a guest that runs.
    #[error("The requested operation is not supported while the microVM is paused.")]
    WhilePaused,
    /// The configuration would be invalid with the requested change.
    #[error("{0}")]
    Invalid(Faults),
    /// The machine has no such device.
    #[error("The microVM has no {0} device.")]
    NoDevice(&'static str),
    /// The display has no such scanout.
    #[error("Unknown scanout {0}.")]
    NoScanout(String),
    /// It would exceed its limit: status 413.
    #[error("{0}")]
    TooLarge(String),
    /// It was tried and failed, or is impossible in the present state.
    #[error("{0}")]
    Failed(String),
    /// Too many actions are waiting, or the machine is about to end.
    #[error("The microVM does not answer.")]
    NoAnswer,
}
