// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The phases of a machine's life, and in which of them an action is legal.
//!
//! ```text
//!                  Start            Pause
//!   NotStarted ───────────▶ Running ─────▶ Paused
//!                              ▲             │
//!                              └─────────────┘ Resume
//! ```

use bitflags::bitflags;
use serde::Serialize;
use utoipa::ToSchema;

use super::refusal::Refusal;

/// Phase of a machine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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
    /// The error states whether the action came too early, too late, or while the machine is
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
