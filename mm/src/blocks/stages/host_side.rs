// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's own stage: discards wasted pages and makes blocks huge.
//!
//! The guest keeps running; a vCPU waits only for a page that is being moved. So each step is
//! checked again before it is taken, and skipped if the guest has made it useless.

use super::{CarryOut, PassProgress};
use crate::backing::{Discarded, MemoryRefusal};
use crate::blocks::plan::{PlanAction, PlanStep};
use crate::blocks::report::StepResult;
use crate::guest_ram::{GuestRam, GuestRamError};
use crate::units::{BlockId, Bytes, GuestRange, Pages};

/// Discards, collapses and backs blocks.
#[derive(Debug, Default)]
pub(in crate::blocks) struct HostStage {
    /// Consecutive failed huge-page allocations.
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
    /// Makes a block huge, unless it has holes.
    pub(super) fn make_huge(
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
        // Fails where it would exceed the process's limit on mappings.
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

/// Makes a block huge that may be absent. Only its first page is touched: a host or cgroup that is
/// short of memory refuses huge pages, but kills a process when small pages run out.
fn back(ram: &GuestRam, block: GuestRange) -> Result<(), GuestRamError> {
    let first = GuestRange::new(block.start(), Pages(1)).expect("a page of the block");
    ram.populate(first)?;
    match ram.residency_of(block)?.huge {
        Some(huge) if huge == block.bytes() => Ok(()),
        _ => ram.collapse(block),
    }
}
