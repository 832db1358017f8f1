// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making room at once, on a host that is short: blocks and pages that the guest has not used
//! lately are evicted, whatever that costs it.
//!
//! A hand goes round all blocks. What came back since it last passed is spared once. Present blocks
//! are taken out a few at a time, for a moment; those that the guest accesses meanwhile go straight
//! back, the others are compressed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::range_set::RangeSet;

use super::evict::{OnAccess, Stay};
use super::pager_engine::PagerEngine;
use super::states::BlockState;

/// Blocks that are taken out together.
const BATCH: usize = 8;
/// How long they are out before they are compressed.
const MOMENT: Duration = Duration::from_millis(10);

/// Where the hand is.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReliefHand {
    next: usize,
}

/// Result of one round of relief.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReliefReport {
    /// Blocks moved to the store.
    pub stored: u64,
    /// Blocks of which pages were.
    pub partly: u64,
    /// Blocks that the guest accessed.
    pub returned: u64,
    /// Why storing ended early, if it did.
    pub stopped: Option<String>,
}

impl ReliefReport {
    /// Whether it freed anything.
    pub fn is_empty(&self) -> bool {
        self.stored == 0 && self.partly == 0
    }
}

impl PagerEngine {
    /// Evicts a few blocks, those with pages of `exclude` excepted.
    pub(super) fn relieve(
        &self,
        hand: &mut ReliefHand,
        exclude: &RangeSet,
        cancel: &AtomicBool,
    ) -> ReliefReport {
        let mut report = ReliefReport::default();
        let mut out = Vec::new();
        let note = |report: &mut ReliefReport, result: Result<bool, Stay>| match result {
            Ok(whole) => {
                report.stored += u64::from(whole);
                report.partly += u64::from(!whole);
            }
            Err(Stay::Wanted | Stay::Away) => report.returned += 1,
            Err(Stay::Store(error)) => {
                report.stopped.get_or_insert_with(|| error.to_string());
            }
            Err(stay) => tracing::trace!("not evicted: {stay}"),
        };
        let blocks = self.areas.blocks();
        // Twice round: the first time what was used lately is spared.
        for _ in 0..2 * blocks {
            if out.len() == BATCH || report.partly as usize >= BATCH || report.stopped.is_some() {
                break;
            }
            let index = hand.next % blocks;
            hand.next = (index + 1) % blocks;
            let partly = match self.record().state(index) {
                BlockState::Present => false,
                BlockState::Absent(absence) if absence.pages_back() > 0 => true,
                _ => continue,
            };
            if self.recent[index].swap(false, Ordering::Relaxed) || self.is_excluded(index, exclude)
            {
                continue;
            }
            if partly {
                note(&mut report, self.take_pages_out(index).map(|()| false));
            } else if self.is_resident(index) {
                match self.take_out(index, OnAccess::Return) {
                    Ok(slot) => out.push((index, slot)),
                    Err(stay) => note(&mut report, Err(stay)),
                }
            }
        }
        if !out.is_empty() {
            std::thread::sleep(MOMENT);
        }
        for (index, slot) in out {
            if report.stopped.is_some() || cancel.load(Ordering::Relaxed) {
                self.end_early(index, slot);
            } else {
                note(&mut report, self.pack(index, slot, OnAccess::Return, None).map(|()| true));
            }
        }
        report
    }
}
