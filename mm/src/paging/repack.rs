// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recompression: blocks that stay absent for long are compressed again with a slower, denser
//! codec.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::thread::cpu_time;
use crate::units::{Bytes, SaturatingInto};

use super::absence::STORE;
use super::pager_engine::PagerEngine;
use super::source::key;
use super::states::BlockState;
use super::stats::PagerCounters;
use crate::store::Store;

/// Result of repacking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepackReport {
    /// Blocks that were recompressed.
    pub blocks: u64,
    /// Bytes that this made them smaller.
    pub saved: Bytes,
    /// Why it ended early, if it did.
    pub stopped: Option<String>,
}

impl PagerEngine {
    /// Blocks that have been in the store for `age` and were not repacked.
    pub(super) fn repackable(&self, age: Duration) -> Vec<usize> {
        let in_store = |state: &BlockState| match state {
            BlockState::Absent(absence) => absence.source() == STORE && !absence.is_empty(),
            _ => false,
        };
        let mut blocks = self.record().select(in_store);
        blocks.retain(|&index| self.ages.is_older(index, age));
        blocks
    }

    pub(super) fn repack(&self, most: usize, age: Duration, cancel: &AtomicBool) -> RepackReport {
        let mut report = RepackReport::default();
        for index in self.repackable(age).into_iter().take(most) {
            if cancel.load(Ordering::Relaxed) {
                report.stopped = Some("cancelled".into());
                break;
            }
            let began = cpu_time();
            // A page that is brought back during the call is no longer there and saves nothing.
            let bundles = Self::pages(index).step_by(Store::BUNDLE as usize);
            let saved = bundles.into_iter().try_fold(0, |saved, page| {
                self.idle.relax();
                self.pool.repack(key(page)).map(|gained| saved + gained as u64)
            });
            let took = (cpu_time() - began).as_nanos().saturating_u64();
            PagerCounters::add(&self.counters.repack_ns, took);
            match saved {
                Ok(saved) => {
                    self.ages.repacked(index);
                    PagerCounters::add(&self.counters.blocks_repacked, 1);
                    PagerCounters::add(&self.counters.repack_saved_bytes, saved);
                    report.blocks += 1;
                    report.saved = report.saved.saturating_add(Bytes(saved));
                }
                Err(error) => {
                    report.stopped = Some(error.to_string());
                    break;
                }
            }
        }
        if report.blocks > 0 {
            self.pool.compact();
        }
        report
    }
}
