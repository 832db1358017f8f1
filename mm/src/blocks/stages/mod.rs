// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stages of a pass, each with its plan. Stages that involve the guest come first, as they
//! change the map for the others.
//!
//! ```text
//! gather: the guest lends its free memory ─▶ evacuate: sparse blocks ─▶ again, waiting for busy pages ─▶ squeeze: full blocks into gaps ─▶ host: discard, collapse, back
//! ```
//!
//! - `gather.rs`: the guest makes whole blocks of free memory
//! - `evacuate.rs`: the guest evacuates blocks, sparse ones or, in squeeze, full ones
//! - `host_side.rs`: what the host does by itself
//! - `progress.rs`: the state of the pass that stages work on

mod evacuate;
mod gather;
mod host_side;
mod progress;

use super::plan::PlanStep;
use super::report::EndReason;
use crate::guest_ram::GuestRamError;

pub(super) use evacuate::EvacuateStage;
pub(super) use gather::GatherStage;
pub(super) use host_side::HostStage;
pub(super) use progress::{PassProgress, Spending, Watch};

/// How a stage carries out one round's plan.
pub(super) trait CarryOut {
    /// Carries out the first of `steps` (not empty) together with following ones that fit in the
    /// same call; returns how many.
    fn take(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<usize, GuestRamError>;

    /// Carries out all of `steps`, until the pass is cancelled or out of time.
    fn carry_out(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<EndReason, GuestRamError> {
        let mut rest = steps;
        while !rest.is_empty() {
            if let Some(end) = progress.look_up(rest.len()) {
                return Ok(end);
            }
            let taken = self.take(rest, progress)?;
            rest = &rest[taken..];
        }
        progress.look_up(0);
        Ok(EndReason::Finished)
    }
}
