// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be asked of the monitor while it runs, and when it may be asked: the only vocabulary
//! between the API thread and the machine. The actions of each resource stand with the resource;
//! [`Action`] and [`Reply`] collect them.
//!
//! ```text
//!                  Start            Pause
//!   NotStarted ───────────▶ Running ─────▶ Paused
//!                              ▲             │
//!                              └─────────────┘ Resume
//! ```

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use super::resources::{Action, Reply};
use crate::config::Faults;

/// Phase of a machine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Phase {
    /// The machine is being described.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

bitflags! {
    /// A set of [`Phase`]s.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Phases: u8 {
        /// [`Phase::NotStarted`].
        const NOT_STARTED = 1;
        /// [`Phase::Running`].
        const RUNNING = 2;
        /// [`Phase::Paused`].
        const PAUSED = 4;
        /// The machine was started.
        const STARTED = Self::RUNNING.bits() | Self::PAUSED.bits();
        /// At any time.
        const ANY = Self::NOT_STARTED.bits() | Self::STARTED.bits();
    }
}

impl From<Phase> for Phases {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::NotStarted => Self::NOT_STARTED,
            Phase::Running => Self::RUNNING,
            Phase::Paused => Self::PAUSED,
        }
    }
}

impl Phases {
    /// Checks that an action legal in these phases may be asked in `phase`.
    ///
    /// # Errors
    ///
    /// The refusal says whether the action came too early, too late, or while the machine is
    /// paused.
    pub fn check(self, phase: Phase) -> Result<(), Refusal> {
        if self.contains(phase.into()) {
            Ok(())
        } else if phase == Phase::NotStarted {
            Err(Refusal::BeforeStart)
        } else if self.intersects(Self::STARTED) {
            Err(Refusal::WhilePaused)
        } else {
            Err(Refusal::AfterStart)
        }
    }
}

impl Action {
    /// Checks that this may be asked in `phase`.
    ///
    /// # Errors
    ///
    /// As [`Phases::check`].
    pub fn check(&self, phase: Phase) -> Result<(), Refusal> {
        self.legal_in().check(phase)
    }
}

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
    /// The configuration, with what was asked for, is invalid.
    #[error("{0}")]
    Invalid(Faults),
    /// The machine has no such device.
    #[error("The microVM has no {0} device.")]
    NoDevice(&'static str),
    /// The display has no such scanout.
    #[error("There is no scanout {0}.")]
    NoScanout(String),
    /// It was tried and failed, or is impossible in the present state.
    #[error("{0}")]
    Failed(String),
    /// Too many actions are waiting, or the machine is about to end.
    #[error("The microVM does not answer.")]
    NoAnswer,
}
