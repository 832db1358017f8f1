// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trials: blocks that are out without being compressed, to see whether the guest misses them.

use super::cold::ColdTracker;
use super::engine::Engine;
use super::evict::Stay;
use super::record::State;

/// Blocks on trial. A block that the guest touches goes straight back; the slots of the others are
/// taken until the trial [ends](super::Paging::end_trial).
#[derive(Debug, Default)]
#[must_use = "blocks on trial stay out until the trial ends"]
pub struct OnTrial {
    /// Blocks and the slots that they lie in.
    out: Vec<(usize, usize)>,
    /// Blocks that the guest touched before they were out.
    wanted: Vec<usize>,
}

impl OnTrial {
    /// Number of blocks that were taken out.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether no block was taken out.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
}

/// Result of a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrialReport {
    /// Blocks that went to the store.
    pub stored: u64,
    /// Blocks that the guest wanted back.
    pub returned: u64,
    /// Blocks put back for another reason: they do not compress, or the pool is full.
    pub kept: u64,
    /// Why storing ended early, if it did.
    pub stopped: Option<String>,
}

impl Engine {
    pub(super) fn begin_trial(&self, tracker: &mut ColdTracker, wanted: usize) -> OnTrial {
        let chosen = {
            let in_place =
                |index| *self.record().state(index) == State::Present && self.is_resident(index);
            tracker.choose(wanted.min(self.outlet.slots() / 2), in_place)
        };
        let mut trial = OnTrial::default();
        for index in chosen {
            match self.take_out(index) {
                Ok(slot) => trial.out.push((index, slot)),
                Err(Stay::Wanted) => trial.wanted.push(index),
                Err(stay) => tracing::trace!("block {index} is not tried: {stay}"),
            }
        }
        trial
    }

    pub(super) fn end_trial(&self, tracker: &mut ColdTracker, trial: OnTrial) -> TrialReport {
        let mut report = TrialReport::default();
        let mut outcome: Vec<(usize, bool)> =
            trial.wanted.iter().map(|&index| (index, true)).collect();
        report.returned = outcome.len() as u64;
        for (index, slot) in trial.out {
            let packed = self.pack(index, slot);
            // A block that does not compress is no more worth trying than one that is hot.
            outcome.push((index, packed.is_err()));
            match packed {
                Ok(()) => report.stored += 1,
                Err(Stay::Away | Stay::Wanted) => report.returned += 1,
                Err(Stay::Incompressible) => report.kept += 1,
                Err(stay) => {
                    report.kept += 1;
                    report.stopped.get_or_insert_with(|| stay.to_string());
                }
            }
        }
        tracker.learn(outcome);
        report
    }
}
