// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limits of a device: token buckets with Firecracker's fields.

use std::time::{Duration, Instant};

use devices::virtio::{BucketConfig, BucketUpdate, RateLimiter};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits on bytes and on operations; both are optional.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Limit on bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// Limit on requests or packets.
    #[serde(default)]
    pub ops: Option<TokenBucket>,
}

/// A token bucket. A `size` or `refill_time` of 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Capacity of the bucket, in bytes or operations.
    pub size: u64,
    /// Initial extra tokens, spent first and not refilled.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Time to refill an empty bucket, in milliseconds.
    pub refill_time: u64,
}

impl From<TokenBucket> for BucketConfig {
    fn from(bucket: TokenBucket) -> Self {
        Self {
            size: bucket.size,
            refill: Duration::from_millis(bucket.refill_time),
            one_time_burst: bucket.one_time_burst.unwrap_or(0),
        }
    }
}

impl RateLimiterConfig {
    /// The limiter that this describes; none described is one that admits everything.
    pub fn build(config: Option<Self>) -> RateLimiter {
        let Self { bandwidth, ops } = config.unwrap_or_default();
        RateLimiter::new(
            bandwidth.map(BucketConfig::from),
            ops.map(BucketConfig::from),
            Instant::now(),
        )
    }

    /// Updates for the buckets of bytes and operations; an omitted bucket is unchanged.
    pub fn update(config: Option<Self>) -> (BucketUpdate, BucketUpdate) {
        let Self { bandwidth, ops } = config.unwrap_or_default();
        let update = |bucket: Option<TokenBucket>| match bucket {
            Some(bucket) => BucketUpdate::Set(bucket.into()),
            None => BucketUpdate::Keep,
        };
        (update(bandwidth), update(ops))
    }

    /// Whether it limits anything.
    pub fn limits(&self) -> bool {
        let limits = |bucket: TokenBucket| bucket.size > 0 && bucket.refill_time > 0;
        [self.bandwidth, self.ops].into_iter().flatten().any(limits)
    }

    /// The section after an update with `update`.
    pub fn updated(config: Option<Self>, update: Option<Self>) -> Option<Self> {
        let (old, new) = (config.unwrap_or_default(), update.unwrap_or_default());
        let merged = Self { bandwidth: new.bandwidth.or(old.bandwidth), ops: new.ops.or(old.ops) };
        (merged != Self::default()).then_some(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_only_the_buckets_that_it_names() {
        let bucket = |size| TokenBucket { size, one_time_burst: None, refill_time: 100 };
        let old = RateLimiterConfig { bandwidth: Some(bucket(1)), ops: Some(bucket(2)) };
        let new = RateLimiterConfig { bandwidth: Some(bucket(3)), ops: None };
        let merged = RateLimiterConfig::updated(Some(old), Some(new)).unwrap();
        assert_eq!(merged, RateLimiterConfig { bandwidth: Some(bucket(3)), ops: Some(bucket(2)) });
        assert_eq!(RateLimiterConfig::updated(None, None), None);
        let (bytes, ops) = RateLimiterConfig::update(Some(new));
        assert!(matches!(bytes, BucketUpdate::Set(BucketConfig { size: 3, .. })));
        assert_eq!(ops, BucketUpdate::Keep);
    }
}
