// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass did.

use std::time::Duration;

use super::map::Totals;
use super::stage::Stage;
use crate::units::Bytes;

/// How the steps of one kind went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTally {
    /// Carried out.
    pub done: usize,
    /// Skipped: the guest's activity had made them useless.
    pub moot: usize,
    /// Failed: pages were busy.
    pub busy: usize,
    /// Failed: the host had no free huge page.
    pub refused: usize,
    /// Bytes freed on the host or made huge.
    pub bytes: Bytes,
}

/// How one step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepResult {
    /// Done, with this many bytes gained.
    Done(Bytes),
    Moot,
    Busy,
    Refused,
}

impl StepTally {
    pub(super) fn note(&mut self, result: StepResult) {
        match result {
            StepResult::Done(bytes) => {
                self.done += 1;
                self.bytes = self.bytes.saturating_add(bytes);
            }
            StepResult::Moot => self.moot += 1,
            StepResult::Busy => self.busy += 1,
            StepResult::Refused => self.refused += 1,
        }
    }
}

/// How the steps of each kind went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// Discards.
    pub discard: StepTally,
    /// Collapses.
    pub collapse: StepTally,
    /// Evacuations.
    pub evacuate: StepTally,
    /// Blocks made huge whole.
    pub back: StepTally,
    /// Blocks of free memory, gathered by the guest.
    pub gather: StepTally,
}

impl Tallies {
    /// Steps that changed memory, in any stage.
    pub(super) fn changes(&self) -> usize {
        let all = [self.discard, self.collapse, self.evacuate, self.back, self.gather];
        all.iter().map(|tally| tally.done).sum()
    }

    /// Blocks that the guest gave up for the pass, in any stage.
    pub(super) fn given_up(&self) -> usize {
        self.evacuate.done + self.gather.done
    }
}

/// Why a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// All that was planned was tried.
    Finished,
    /// The time was used up.
    OutOfTime,
    /// It was cancelled.
    Cancelled,
}

/// How long one stage took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// Rounds that it had.
    pub rounds: u32,
    /// Time in all of them.
    pub took: Duration,
    /// Of that, until the guest had taken back what it had lent.
    pub settling: Duration,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// The guest's memory before.
    pub before: Totals,
    /// The guest's memory after.
    pub after: Totals,
    /// How the steps went.
    pub tallies: Tallies,
    /// Steps planned, in all stages.
    pub planned: usize,
    /// Useful steps beyond the limits.
    pub left_out: usize,
    /// How long it took.
    pub took: Duration,
    /// How long each stage took.
    pub stages: Vec<StageTime>,
    /// Why it ended.
    pub end: EndReason,
}
