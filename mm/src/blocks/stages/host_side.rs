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
use crate::units::{BLOCK_SIZE, BlockId, Bytes, GuestRange, PAGES_PER_BLOCK, Pages};

/// Blocks that are made huge before the pass looks whether it is cancelled.
pub(super) const COLLAPSES_AT_ONCE: usize = 16;

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
            PlanAction::Collapse(_) => {
                let blocks = steps.iter().map_while(|step| match step.action {
                    PlanAction::Collapse(id) => Some(id),
                    _ => None,
                });
                let blocks: Vec<BlockId> = blocks.take(COLLAPSES_AT_ONCE).collect();
                let count = blocks.len();
                self.collapse(blocks, progress)?;
                return Ok(count);
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
    /// Collapses `blocks`, those next to each other with one call: each call first has all CPUs empty
    /// their lists of pages, and waits for it. What fails together is tried block by block.
    pub(super) fn collapse(
        &mut self,
        mut blocks: Vec<BlockId>,
        progress: &mut PassProgress<'_>,
    ) -> Result<(), GuestRamError> {
        blocks.sort_unstable();
        for run in blocks.chunk_by(|a, b| a.0 + 1 == b.0) {
            let together = self.collapses_together(run, progress);
            for id in run {
                let result = if !together {
                    self.make_huge(*id, progress, GuestRam::collapse)?
                } else if progress.guest.keep_holes(*id)? {
                    StepResult::Moot
                } else {
                    StepResult::Done(Bytes(BLOCK_SIZE))
                };
                progress.tallies.collapse.note(result);
            }
        }
        Ok(())
    }

    /// Whether adjacent blocks, more than one, could be collapsed with one call.
    fn collapses_together(&self, run: &[BlockId], progress: &PassProgress<'_>) -> bool {
        let first = run.first().and_then(|id| id.checked_range());
        let pages = Pages(run.len() as u64 * PAGES_PER_BLOCK);
        let Some(range) = first.and_then(|first| GuestRange::new(first.start(), pages)) else {
            return false;
        };
        run.len() > 1
            && self.refusals == 0
            && !run.iter().any(|id| progress.guest.has_holes(*id))
            && progress.ram.allow_huge(range, true).is_ok()
            && progress.ram.collapse(range).is_ok()
    }

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
