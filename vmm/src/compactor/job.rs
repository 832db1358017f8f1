// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Jobs for the thread.

use std::sync::atomic::AtomicBool;

use mm::blocks::policy::{Goals, PassLimits};
use mm::blocks::report::PassReport;
use mm::guest_ram::GuestRamError;

use super::live_guest::LiveGuest;

/// A request for a pass.
#[derive(Debug, Clone)]
pub struct PassJob {
    /// Its goals; whether the guest supports evacuation is checked when it runs.
    pub goals: Goals,
    /// What it may spend.
    pub limits: PassLimits,
}

/// Called on the compactor's thread when a job is done.
pub type WhenPassDone = Box<dyn FnOnce(Result<PassReport, GuestRamError>) + Send>;

/// Work on guest memory that must not run during a pass. Its arguments are the guest and a cancel
/// flag. The returned closure is called when the next job may start.
pub type AloneTask = Box<dyn FnOnce(&LiveGuest, &AtomicBool) -> Box<dyn FnOnce()> + Send>;

/// Why a job was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompactorError {
    /// Two passes at once would undo each other's plans.
    #[error("A compaction pass or parking is running; wait for it or cancel it.")]
    Busy,
    /// As many requests as may wait for a walk do so already.
    #[error("Too many memory queries are waiting; try again later.")]
    TooManyWalks,
    /// The machine is shutting down.
    #[error("The compactor has stopped.")]
    Stopped,
}
