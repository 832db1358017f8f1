// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The states of a block, and how many blocks are in each.

use super::absence::Absence;

/// Where a block's contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// In place, or never there: then it reads as zero.
    Present,
    /// Being moved to staging. `wanted`: a thread waits for it.
    Leaving { wanted: bool },
    /// In staging, as it was.
    Out { slot: usize },
    /// In staging, being compressed. `wanted`: a thread waits for it.
    Packing { slot: usize, wanted: bool },
    /// With a source, apart from the pages that were discarded or came back since.
    Absent(Absence),
    /// Being brought back, or pages of it are.
    Filling,
    /// Its source could not read it.
    Lost,
}

/// Blocks by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// With a source, also those of which all pages were discarded since.
    pub(super) absent: usize,
    /// In staging or on the way there.
    pub(super) out: usize,
    /// Being brought back.
    pub(super) filling: usize,
    /// Pages of absent blocks that are not at the source: in place, or discarded.
    pub(super) pages_gone: usize,
    /// Whose contents are lost.
    pub(super) lost: usize,
    /// Registered with userfaultfd.
    pub(super) registered: usize,
    /// Runs of registered blocks: each takes up to two mappings.
    pub(super) runs: usize,
}

impl Counts {
    /// A block is in `state` now.
    pub(super) fn add(&mut self, state: &BlockState) {
        if let Some(count) = self.of(state) {
            *count += 1;
        }
        self.pages_gone += pages_gone(state);
    }

    /// A block that was counted in `state` is not any more.
    pub(super) fn remove(&mut self, state: &BlockState) {
        if let Some(count) = self.of(state) {
            *count -= 1;
        }
        self.pages_gone -= pages_gone(state);
    }

    /// The counter that a state has, if it has one.
    fn of(&mut self, state: &BlockState) -> Option<&mut usize> {
        match state {
            BlockState::Present => None,
            BlockState::Leaving { .. } | BlockState::Out { .. } | BlockState::Packing { .. } => {
                Some(&mut self.out)
            }
            BlockState::Absent(absence) if absence.is_staged() => Some(&mut self.out),
            BlockState::Absent(_) => Some(&mut self.absent),
            BlockState::Filling => Some(&mut self.filling),
            BlockState::Lost => Some(&mut self.lost),
        }
    }
}

fn pages_gone(state: &BlockState) -> usize {
    match state {
        BlockState::Absent(absence) if !absence.is_staged() => absence.pages_gone(),
        _ => 0,
    }
}
