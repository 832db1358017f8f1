// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest makes whole blocks of its free memory and lends them.

use super::{CarryOut, PassProgress};
use crate::blocks::plan::{PlanAction, PlanStep};
use crate::guest_ram::GuestRamError;
use crate::units::{BLOCK_SIZE, Bytes};

/// Gathers free memory.
#[derive(Debug, Default)]
pub(in crate::blocks) struct GatherStage;

impl CarryOut for GatherStage {
    fn take(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<usize, GuestRamError> {
        if let PlanAction::Gather(blocks) = steps[0].action {
            let patience = progress.time_left();
            let came = progress.guest.gather(blocks, patience, progress.watch.cancel).min(blocks);
            let tally = &mut progress.tallies.gather;
            tally.done += came as usize;
            tally.busy += (blocks - came) as usize;
            tally.bytes = tally.bytes.saturating_add(Bytes(u64::from(came) * BLOCK_SIZE));
        }
        Ok(1)
    }
}
