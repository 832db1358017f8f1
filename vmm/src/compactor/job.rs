// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the thread is asked to do.

use std::sync::atomic::AtomicBool;

use mm::blocks::policy::{Goals, PassLimits};
use mm::blocks::report::PassReport;
use mm::guest_ram::GuestRamError;

use super::live_guest::LiveGuest;

/// What a pass is asked for.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is for; whether the guest can evacuate is found out when it runs.
    pub goals: Goals,
    /// What it may spend.
    pub limits: PassLimits,
}

/// Called on the compactor's thread when a job is done.
pub type WhenDone = Box<dyn FnOnce(Result<PassReport, GuestRamError>) + Send>;

/// Work on guest memory that must not meet a pass. Its arguments are the guest, and a flag that asks it
/// to end. What it returns is called when the next may begin.
pub type AloneTask = Box<dyn FnOnce(&LiveGuest, &AtomicBool) -> Box<dyn FnOnce()> + Send>;

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompactorError {
    /// Two passes at once would undo each other's plans.
    #[error("A compaction pass or parking is running; wait for it or cancel it.")]
    Busy,
    /// As many requests as may wait for a walk do so already.
    #[error("Too many requests for the state of memory are waiting; try again later.")]
    TooManyWalks,
    /// The machine is being taken down.
    #[error("The compactor has stopped.")]
    Stopped,
}
