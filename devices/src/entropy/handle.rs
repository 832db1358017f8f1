// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The side of the entropy device that other threads see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters with the names of Firecracker's `entropy` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct EntropyCounters {
    /// Activations that failed.
    pub activate_fails: AtomicU64,
    /// Buffers that could not be used.
    pub event_fails: AtomicU64,
    /// Rounds of processing.
    pub queue_event_count: AtomicU64,
    /// Bytes given to the guest.
    pub bytes: AtomicU64,
    /// Times that the host gave no random bytes.
    pub host_rng_fails: AtomicU64,
    /// Times that the rate limit put a buffer off.
    pub rate_limiter_throttled: AtomicU64,
}

impl EntropyCounters {
    /// Adds `count` to one of the counters.
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// The owner's handle of an entropy device.
#[derive(Debug, Clone)]
pub struct EntropyHandle {
    pub(super) counters: Arc<EntropyCounters>,
}

impl EntropyHandle {
    /// Its counters.
    pub fn counters(&self) -> &EntropyCounters {
        &self.counters
    }
}
