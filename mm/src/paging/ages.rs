// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long each block has been in the store.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::units::SaturatingInto;

/// A block that is not in the store, or was repacked.
const NONE: u32 = u32::MAX;

/// Since when each block has been in the store, in seconds.
pub(super) struct Ages {
    began: Instant,
    since: Vec<AtomicU32>,
}

impl Ages {
    pub(super) fn new(blocks: usize) -> Self {
        Self { began: Instant::now(), since: (0..blocks).map(|_| AtomicU32::new(NONE)).collect() }
    }

    fn now(&self) -> u32 {
        self.began.elapsed().as_secs().saturating_u32().min(NONE - 1)
    }

    /// Block `index` was stored.
    pub(super) fn stored(&self, index: usize) {
        self.since[index].store(self.now(), Ordering::Relaxed);
    }

    /// Block `index` was repacked: that is done once.
    pub(super) fn repacked(&self, index: usize) {
        self.since[index].store(NONE, Ordering::Relaxed);
    }

    pub(super) fn is_older(&self, index: usize, age: Duration) -> bool {
        let since = self.since[index].load(Ordering::Relaxed);
        since != NONE && u64::from(self.now().saturating_sub(since)) >= age.as_secs()
    }
}
