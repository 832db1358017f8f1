// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PagerCounters of the pager, and how long faults took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::units::{SaturatingInto, usize_from};

use super::page_pool::PagePoolStats;

/// Buckets of the histogram: four to each power of two of nanoseconds.
const BUCKETS: usize = 160;
const PER_OCTAVE: u32 = 4;

/// What is where.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PagingStats {
    /// Bytes of guest memory that are with a source.
    pub absent_bytes: u64,
    /// Bytes of absent blocks that are in guest memory, or nowhere: then they read as zero.
    pub gone_bytes: u64,
    /// Bytes on their way out.
    pub staged_bytes: u64,
    /// Bytes whose source failed.
    pub lost_bytes: u64,
    /// Runs of absent blocks, which cost mappings.
    pub runs: u64,
    /// Blocks in the hot set.
    pub hot_blocks: u64,
    /// What has happened.
    pub counters: PagingCounters,
    /// How long faults took.
    pub faults: FaultLatency,
    /// The compressed pages.
    pub pool: PagePoolStats,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of the pager since it was created.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct PagingCounters { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(super) struct PagerCounters { $(pub(super) $name: AtomicU64,)* }

        impl PagerCounters {
            pub(super) fn snapshot(&self) -> PagingCounters {
                PagingCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Blocks moved out of guest memory.
    blocks_out,
    /// Blocks compressed and stored.
    blocks_stored,
    /// Blocks moved back before they were stored, because the guest touched them.
    blocks_recalled,
    /// Blocks moved back because they did not compress.
    blocks_incompressible,
    /// Blocks that could not be moved out because a page was pinned or shared.
    blocks_busy,
    /// Blocks brought back because they were touched.
    blocks_touched,
    /// Pages brought back on their own because they were touched.
    pages_touched,
    /// Pages brought back with one that was touched.
    pages_prefetched,
    /// Such pages that were stored again.
    pages_stored,
    /// Pages of blocks on trial that came back on their own because they were touched.
    pages_returned,
    /// Blocks on trial that were moved back because they were touched, or wanted by unpark.
    blocks_returned,
    /// Blocks brought back by unpark or read-ahead.
    blocks_prefetched,
    /// Blocks that came back in small pages.
    blocks_landed_small,
    /// Blocks whose contents were dropped because the guest had given them up.
    blocks_dropped,
    /// Faults reported by the kernel; several may concern one block.
    faults,
    /// Number of times that a fault was held back because the host had too little room.
    faults_held,
    /// Number of times that bringing a block back had to be retried, mostly because host memory was
    /// short.
    fill_retries,
    /// Blocks whose source failed: their contents are lost.
    blocks_lost,
    /// CPU time for compression, in nanoseconds, of all threads.
    compress_ns,
    /// Bytes compressed.
    compress_bytes,
    /// CPU time for bringing blocks back, in nanoseconds, of all threads.
    fill_ns,
    /// Blocks recompressed with the second codec.
    blocks_repacked,
    /// Bytes that this made them smaller.
    repack_saved_bytes,
    /// CPU time for recompression, in nanoseconds, of all threads.
    repack_ns,
}

impl PagerCounters {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// How long something took, each time.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

/// How long faults took, from the monitor's reading of one to the page's presence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultLatency {
    /// Number of times.
    pub count: u64,
    /// Half took no longer.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
}

impl Histogram {
    pub(super) fn record(&self, took: Duration) {
        let ns = took.as_nanos().saturating_u64();
        self.buckets[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn latency(&self) -> FaultLatency {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let quantile = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut seen = 0;
            let at = counts.iter().position(|n| {
                seen += n;
                seen >= rank
            });
            Duration::from_nanos(at.filter(|_| count > 0).map_or(0, upper_edge))
        };
        FaultLatency { count, p50: quantile(50), p99: quantile(99) }
    }
}

/// Each power of two is divided into four buckets.
fn bucket(ns: u64) -> usize {
    let octave = ns.max(PER_OCTAVE.into()).ilog2();
    let quarter = (ns.max(PER_OCTAVE.into()) >> (octave - 2)) & 3;
    let index = u64::from((octave - 2) * PER_OCTAVE) + quarter;
    usize_from(index).min(BUCKETS - 1)
}

/// The least number of nanoseconds that is beyond a bucket.
fn upper_edge(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket as u64 / 4 + 2, bucket as u64 % 4);
    (4 + quarter + 1) << (octave - 2).min(60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_within_a_quarter() {
        let histogram = Histogram::default();
        assert_eq!(histogram.latency(), FaultLatency::default());
        for _ in 0..98 {
            histogram.record(Duration::from_micros(60));
        }
        histogram.record(Duration::from_millis(5));
        histogram.record(Duration::from_millis(5));
        let latency = histogram.latency();
        assert_eq!(latency.count, 100);
        let near = |d: Duration, ns: u128| d.as_nanos() >= ns && d.as_nanos() <= ns * 5 / 4;
        assert!(near(latency.p50, 60_000) && near(latency.p99, 5_000_000), "{latency:?}");
    }

    proptest! {
        #[test]
        fn a_value_lies_below_the_edge_of_its_bucket(ns in 4u64..1 << 40) {
            let at = bucket(ns);
            prop_assert!(ns < upper_edge(at));
            prop_assert!(at == 0 || ns >= upper_edge(at - 1));
        }
    }
}
