// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host does by itself: it discards what it holds for nothing, and makes blocks huge.
//!
//! The guest runs all the while; a vCPU waits only for a page that is being moved under it. So each
//! step is looked at once more before it is taken, and left out when the guest has made it
//! worthless.

use super::{CarryOut, PassProgress};
use crate::backing::{Discarded, MemoryRefusal};
use crate::blocks::plan::{PlanAction, PlanStep};
use crate::blocks::report::StepResult;
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::units::{BlockId, Bytes, GuestRange, Pages};

/// Discards, collapses and backs blocks.
#[derive(Debug, Default)]
pub(in crate::blocks) struct HostStage {
    /// Huge pages in a row that the host did not have.
    refusals: u32,
}

impl CarryOut for HostStage {
    fn take(
        &mut self,
        steps: &[PlanStep],
        progress: &mut PassProgress<'_>,
    ) -> Result<usize, GuestRamError> {
        match steps[0].action {
            PlanAction::Discard(id) => {
                let result = discard(id, progress)?;
                progress.tallies.discard.note(result);
            }
            PlanAction::Collapse(id) => {
                let result = self.make_huge(id, progress, GuestRam::collapse)?;
                progress.tallies.collapse.note(result);
            }
            PlanAction::Back(id) => {
                let result = self.make_huge(id, progress, back)?;
                progress.tallies.back.note(result);
            }
            PlanAction::Evacuate(_) | PlanAction::Gather(_) => {}
        }
        Ok(1)
    }
}

impl HostStage {
    fn make_huge(
        &mut self,
        id: BlockId,
        progress: &PassProgress<'_>,
        how: fn(&GuestRam, GuestRange) -> Result<(), GuestRamError>,
    ) -> Result<StepResult, GuestRamError> {
        let Some(range) = id.checked_range() else { return Ok(StepResult::Moot) };
        if self.refusals >= progress.policy.collapse_refusals {
            return Ok(StepResult::Refused);
        }
        if progress.guest.has_holes(id) {
            return Ok(StepResult::Moot);
        }
        let ram = progress.ram;
        // Refused where it would take one mapping more than a process may have.
        let result = ram.allow_huge(range, true).and_then(|()| how(ram, range));
        if progress.guest.keep_holes(id)? {
            return Ok(StepResult::Moot);
        }
        let refusal = result.as_ref().err().map(GuestRamError::refusal);
        self.refusals = match refusal {
            Some(Some(MemoryRefusal::OutOfMemory)) => self.refusals + 1,
            _ => 0,
        };
        match (result, refusal) {
            (Ok(()), _) => Ok(StepResult::Done(range.bytes())),
            (Err(_), Some(Some(MemoryRefusal::Busy))) => Ok(StepResult::Busy),
            (Err(_), Some(Some(MemoryRefusal::OutOfMemory | MemoryRefusal::Unsupported))) => {
                Ok(StepResult::Refused)
            }
            (Err(fault), _) => Err(fault),
        }
    }
}

fn discard(id: BlockId, progress: &PassProgress<'_>) -> Result<StepResult, GuestRamError> {
    let done = progress.guest.discard_ballooned(id, progress.map.wasted(id))?;
    Ok(match done {
        Discarded { asked: Bytes(0), .. } => StepResult::Moot,
        Discarded { freed: Bytes(0), .. } => StepResult::Busy,
        Discarded { freed, .. } => StepResult::Done(freed),
    })
}

/// Makes a block huge that may be absent: only its first page is touched, as a host that is short
/// of memory, or of what a cgroup may have, refuses huge pages but kills a process when small ones run out.
fn back(ram: &GuestRam, block: GuestRange) -> Result<(), GuestRamError> {
    let first = GuestRange::new(block.start(), Pages(1)).expect("a page of the block");
    ram.populate(first)?;
    match ram.residency_of(block)?.huge {
        Some(huge) if huge == block.bytes() => Ok(()),
        _ => ram.collapse(block),
    }
}
