// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long requests took, as Firecracker's metrics sum that up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The shortest, the longest, and all together, in microseconds that were begun: 0 is none. One
/// thread records at a time, any may read.
#[derive(Debug, Default, serde::Serialize)]
pub struct LatencyAggregate {
    /// The shortest.
    pub min_us: AtomicU64,
    /// The longest.
    pub max_us: AtomicU64,
    /// All together.
    pub sum_us: AtomicU64,
}

impl LatencyAggregate {
    /// Notes one request.
    pub(crate) fn record(&self, took: Duration) {
        let us = took.as_secs().saturating_mul(1_000_000);
        let us = us.saturating_add(took.subsec_nanos().div_ceil(1000).into()).max(1);
        let shortest = self.min_us.load(Ordering::Relaxed);
        if shortest == 0 || us < shortest {
            self.min_us.store(us, Ordering::Relaxed);
        }
        if us > self.max_us.load(Ordering::Relaxed) {
            self.max_us.store(us, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_shortest_the_longest_and_the_sum() {
        let latency = LatencyAggregate::default();
        for nanos in [5_000, 0, 9_001, 2_000] {
            latency.record(Duration::from_nanos(nanos));
        }
        let LatencyAggregate { min_us, max_us, sum_us } = latency;
        let seen = [min_us, max_us, sum_us].map(AtomicU64::into_inner);
        assert_eq!(seen, [1, 10, 18]);
    }
}
