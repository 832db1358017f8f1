// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trials: blocks taken out without being compressed, to see whether the guest accesses them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::range_set::RangeSet;

use super::cold::{ColdTracker, TrialOutcome};
use super::evict::{OnAccess, Stay};
use super::pager_engine::PagerEngine;
use super::states::BlockState;

/// Blocks on trial. A block that the guest touches goes straight back, or pages of it if it came back
/// before; the slots of the others are taken until the trial [ends](super::Paging::end_trial).
#[derive(Debug, Default)]
#[must_use = "blocks on trial stay out until the trial ends"]
pub struct OnTrial {
    /// Blocks and the slots that they lie in.
    out: Vec<(usize, usize)>,
    /// Blocks of which the guest gets single pages.
    staged: Vec<usize>,
    /// Blocks whose trial is over, and how it ended.
    ended: Vec<(usize, TrialOutcome)>,
    report: TrialReport,
}

impl OnTrial {
    /// Number of blocks that are out.
    pub fn len(&self) -> usize {
        self.out.len() + self.staged.len()
    }

    /// Whether no block is out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn note(&mut self, index: usize, outcome: TrialOutcome) {
        match outcome {
            TrialOutcome::Stored | TrialOutcome::Partly(_) => self.report.stored += 1,
            TrialOutcome::Wanted => self.report.returned += 1,
            TrialOutcome::Unable => self.report.kept += 1,
        }
        self.ended.push((index, outcome));
    }
}

/// Result of a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrialReport {
    /// Blocks moved to the store, some but for a few pages.
    pub stored: u64,
    /// Blocks that the guest accessed.
    pub returned: u64,
    /// Blocks put back for another reason: they do not compress, or the pool is full.
    pub kept: u64,
    /// Why storing ended early, if it did.
    pub stopped: Option<String>,
}

impl PagerEngine {
    pub(super) fn begin_trial(
        &self,
        tracker: &mut ColdTracker,
        wanted: usize,
        exclude: &RangeSet,
    ) -> OnTrial {
        let present: Vec<bool> = {
            let record = self.record();
            (0..self.areas.blocks()).map(|at| *record.state(at) == BlockState::Present).collect()
        };
        let is_present = |index: usize| present[index];
        let in_place = |index: usize| present[index] && self.is_resident(index);
        let chosen = tracker.choose(wanted.min(self.outlet.slots() / 2), is_present, in_place);
        let mut trial = OnTrial::default();
        for index in chosen {
            let by_page = self.huge && tracker.came_back(index);
            let on_access = if by_page { OnAccess::Wait } else { OnAccess::Return };
            let out = match self.is_excluded(index, exclude) {
                true => Err(Stay::Pinned),
                false => self.take_out(index, on_access),
            };
            match out {
                Ok(slot) if by_page && self.stage(index, slot) => trial.staged.push(index),
                Ok(slot) => trial.out.push((index, slot)),
                Err(Stay::Wanted) => trial.note(index, TrialOutcome::Wanted),
                Err(Stay::Pinned | Stay::NotHuge | Stay::Busy) => {
                    trial.note(index, TrialOutcome::Unable);
                }
                Err(stay) => tracing::trace!("block {index} is not tried: {stay}"),
            }
        }
        trial
    }

    /// Compresses blocks of `trial` until `stop` says so or the store refuses one.
    pub(super) fn pack_trial(&self, trial: &mut OnTrial, stop: &dyn Fn() -> bool) {
        while trial.report.stopped.is_none() && !stop() {
            let (index, stored) = if let Some((index, slot)) = trial.out.pop() {
                let packed = self.pack(index, slot, OnAccess::Return, None);
                (index, packed.map(|()| TrialOutcome::Stored))
            } else if let Some(index) = trial.staged.pop() {
                (index, self.store_staged(index))
            } else {
                return;
            };
            match stored {
                Ok(outcome) => trial.note(index, outcome),
                Err(Stay::Away | Stay::Wanted) => trial.note(index, TrialOutcome::Wanted),
                Err(Stay::Incompressible) => trial.note(index, TrialOutcome::Unable),
                Err(stay) => {
                    trial.report.kept += 1;
                    trial.report.stopped = Some(stay.to_string());
                }
            }
        }
    }

    pub(super) fn end_trial(
        &self,
        tracker: &mut ColdTracker,
        mut trial: OnTrial,
        cancel: &AtomicBool,
    ) -> TrialReport {
        self.pack_trial(&mut trial, &|| cancel.load(Ordering::Relaxed));
        let OnTrial { out, staged, ended, mut report } = trial;
        if !out.is_empty() || !staged.is_empty() {
            report.stopped.get_or_insert_with(|| "cancelled".into());
        }
        for (index, slot) in out {
            report.kept += u64::from(self.end_early(index, slot));
        }
        for index in staged {
            report.kept += u64::from(self.unstage(index));
        }
        tracker.learn(ended);
        report
    }

    /// Puts block `index` of a trial back in its place; whether it was still out.
    pub(super) fn end_early(&self, index: usize, slot: usize) -> bool {
        if !self.record().begin_packing(index, slot) {
            return false;
        }
        self.put_back(index, slot);
        self.outlet.give_back(slot);
        true
    }
}
