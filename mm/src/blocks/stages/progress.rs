// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a running pass for its stages.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::blocks::guest_side::GuestSide;
use crate::blocks::loan::Loan;
use crate::blocks::map::BlockMap;
use crate::blocks::plan::Plan;
use crate::blocks::policy::{PassLimits, PassPolicy};
use crate::blocks::report::{EndReason, Tallies};
use crate::guest_ram::GuestRam;
use crate::units::{BlockId, Bytes};

/// How a pass is cancelled, and how it reports progress.
pub(in crate::blocks) struct Watch<'a> {
    pub(in crate::blocks) cancel: &'a AtomicBool,
    /// Called with the steps done and planned.
    pub(in crate::blocks) progress: &'a mut dyn FnMut(usize, usize),
}

/// What a pass may still spend.
#[derive(Debug)]
pub(in crate::blocks) struct Spending {
    start: Instant,
    limits: PassLimits,
    pub(in crate::blocks) planned: usize,
    pub(in crate::blocks) left_out: usize,
}

impl Spending {
    pub(in crate::blocks) fn new(limits: PassLimits) -> Self {
        Self { start: Instant::now(), limits, planned: 0, left_out: 0 }
    }

    pub(in crate::blocks) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time that is left; `None` if it is used up.
    pub(in crate::blocks) fn time_left(&self) -> Option<Duration> {
        self.limits.time.checked_sub(self.start.elapsed())
    }

    /// What the next plan may spend.
    pub(in crate::blocks) fn left(&self) -> PassLimits {
        PassLimits { time: self.time_left().unwrap_or_default(), ..self.limits }
    }

    /// Spends what `plan` needs.
    pub(in crate::blocks) fn spend(&mut self, plan: &Plan) {
        let copies = plan.steps.iter().map(|step| step.copies);
        let copies = copies.fold(Bytes(0), Bytes::saturating_add);
        self.limits.bytes = self.limits.bytes.saturating_sub(copies);
        self.planned += plan.steps.len();
        self.left_out += plan.left_out;
    }
}

/// What the stages of a pass work on.
pub(in crate::blocks) struct PassProgress<'a> {
    pub(in crate::blocks) ram: &'a GuestRam,
    pub(in crate::blocks) guest: &'a dyn GuestSide,
    pub(in crate::blocks) policy: PassPolicy,
    pub(in crate::blocks) watch: Watch<'a>,
    /// The map of the current plan.
    pub(in crate::blocks) map: BlockMap,
    /// When it was read; `None` once the pass has changed memory since.
    pub(in crate::blocks) map_read: Option<Instant>,
    pub(in crate::blocks) spending: Spending,
    pub(in crate::blocks) loan: Loan,
    pub(in crate::blocks) tallies: Tallies,
    /// Blocks that the guest could not evacuate.
    pub(in crate::blocks) stuck: BTreeSet<BlockId>,
}

impl PassProgress<'_> {
    /// Reports progress, with `steps` of the current plan left; returns why the pass must end, if
    /// it must.
    pub(super) fn look_up(&mut self, steps: usize) -> Option<EndReason> {
        let planned = self.spending.planned;
        (self.watch.progress)(planned - steps, planned);
        if steps == 0 {
            return None;
        }
        if self.watch.cancel.load(Ordering::Relaxed) {
            return Some(EndReason::Cancelled);
        }
        self.spending.time_left().is_none().then_some(EndReason::OutOfTime)
    }

    /// Whether the pass is cancelled or out of time.
    pub(super) fn must_end(&self) -> bool {
        self.watch.cancel.load(Ordering::Relaxed) || self.spending.time_left().is_none()
    }

    /// Time that is left.
    pub(super) fn time_left(&self) -> Duration {
        self.spending.time_left().unwrap_or_default()
    }
}
