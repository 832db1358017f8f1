// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limits on a guest's bytes and requests: token buckets with the fields of Firecracker's API.
//!
//! A device calls `admit` before it takes a request from its queue and, if not admitted, leaves the
//! request there until the returned time:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use devices::virtio::{BucketConfig, RateLimiter};
//!
//! let second = Duration::from_secs(1);
//! let now = Instant::now();
//! let bytes = BucketConfig { size: 1000, refill: second, one_time_burst: 0 };
//! let mut limiter = RateLimiter::new(Some(bytes), None, now);
//! assert!(limiter.admit(600, 1, now).is_ok());
//! // 400 tokens are left; the bucket has 600 after another 200 ms.
//! assert_eq!(limiter.admit(600, 1, now), Err(now + second / 5));
//! assert!(limiter.admit(600, 1, now + second / 5).is_ok());
//! ```

use std::time::{Duration, Instant};

use mm::units::SaturatingInto;

/// Configuration of a token bucket. A `size` or `refill` of zero means no limit, as in Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens that the bucket holds: bytes or requests.
    pub size: u64,
    /// Time in which an empty bucket is full again.
    pub refill: Duration,
    /// Initial extra tokens, spent first and not refilled.
    pub one_time_burst: u64,
}

/// What to do with one of a limiter's buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BucketUpdate {
    /// Keep it, including its tokens.
    #[default]
    Keep,
    /// Limit by this bucket, full, from now on.
    Set(BucketConfig),
}

/// Limits on bytes and on requests, each optional.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    bytes: Option<FilledBucket>,
    ops: Option<FilledBucket>,
}

impl RateLimiter {
    /// A limiter whose buckets are full at `now`.
    pub fn new(bytes: Option<BucketConfig>, ops: Option<BucketConfig>, now: Instant) -> Self {
        let tokens = |bucket| FilledBucket::new(bucket, now);
        Self { bytes: bytes.and_then(tokens), ops: ops.and_then(tokens) }
    }

    /// A limiter that admits everything.
    pub fn unlimited() -> Self {
        Self { bytes: None, ops: None }
    }

    /// Takes tokens for `ops` requests of together `bytes` bytes.
    ///
    /// # Errors
    ///
    /// The time when there will be enough tokens; none are taken. A request larger than the bucket
    /// is admitted when the bucket is full, and paid off before the next one.
    pub fn admit(&mut self, bytes: u64, ops: u64, now: Instant) -> Result<(), Instant> {
        let bytes_at = self.bytes.as_mut().and_then(|tokens| tokens.available_at(bytes, now));
        let ops_at = self.ops.as_mut().and_then(|tokens| tokens.available_at(ops, now));
        if let Some(at) = bytes_at.max(ops_at) {
            return Err(at);
        }
        self.charge(bytes, ops);
        Ok(())
    }

    /// [`admit`](Self::admit) at the present time; without a limit the clock is not read.
    ///
    /// # Errors
    ///
    /// When there will be enough tokens; none are taken.
    pub fn admit_now(&mut self, bytes: u64, ops: u64) -> Result<(), Instant> {
        match (&self.bytes, &self.ops) {
            (None, None) => Ok(()),
            _ => self.admit(bytes, ops, Instant::now()),
        }
    }

    /// Takes tokens even if the bucket has too few: later requests wait for them.
    pub fn charge(&mut self, bytes: u64, ops: u64) {
        if let Some(tokens) = &mut self.bytes {
            tokens.take(bytes);
        }
        if let Some(tokens) = &mut self.ops {
            tokens.take(ops);
        }
    }

    /// Returns unused tokens of a request.
    pub fn refund(&mut self, bytes: u64, ops: u64) {
        if let Some(tokens) = &mut self.bytes {
            tokens.give(bytes);
        }
        if let Some(tokens) = &mut self.ops {
            tokens.give(ops);
        }
    }

    /// Changes the buckets; an unchanged bucket keeps its tokens.
    pub fn update(&mut self, bytes: BucketUpdate, ops: BucketUpdate, now: Instant) {
        if let BucketUpdate::Set(bucket) = bytes {
            self.bytes = FilledBucket::new(bucket, now);
        }
        if let BucketUpdate::Set(bucket) = ops {
            self.ops = FilledBucket::new(bucket, now);
        }
    }
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// One bucket and what is in it.
///
/// Tokens are counted in nanoseconds of refilling times the bucket's size, so that no rounding
/// loses any: one token is `refill` nanoseconds, and one nanosecond brings `size` units.
#[derive(Debug, Clone)]
struct FilledBucket {
    size: u64,
    /// Nanoseconds to fill the bucket; not zero.
    refill: u64,
    burst: u64,
    /// Units in the bucket; negative after a request larger than the bucket.
    level: i128,
    refilled: Instant,
}

impl FilledBucket {
    fn new(bucket: BucketConfig, now: Instant) -> Option<Self> {
        let refill = bucket.refill.as_nanos().saturating_u64();
        if bucket.size == 0 || refill == 0 {
            return None;
        }
        let burst = bucket.one_time_burst;
        let mut tokens = Self { size: bucket.size, refill, burst, level: 0, refilled: now };
        tokens.level = tokens.capacity();
        Some(tokens)
    }

    fn units(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(i128::from(self.refill))
    }

    fn capacity(&self) -> i128 {
        self.units(self.size)
    }

    /// `None` if `count` tokens can be taken now, else the time when they can.
    fn available_at(&mut self, count: u64, now: Instant) -> Option<Instant> {
        let passed = now.saturating_duration_since(self.refilled);
        self.refilled = self.refilled.max(now);
        let earned = i128::from(passed.as_nanos().saturating_u64());
        let earned = earned.saturating_mul(i128::from(self.size));
        self.level = self.level.saturating_add(earned).min(self.capacity());

        let needed = self.units(count.saturating_sub(self.burst)).min(self.capacity());
        let missing = needed - self.level;
        if missing <= 0 {
            return None;
        }
        let size = i128::from(self.size);
        let wait = ((missing + size - 1) / size).saturating_u64();
        // A bucket that fills in centuries.
        let far = Duration::from_secs(1 << 20);
        let at = now.checked_add(Duration::from_nanos(wait).min(far));
        Some(at.unwrap_or(now))
    }

    fn take(&mut self, count: u64) {
        let from_burst = count.min(self.burst);
        self.burst -= from_burst;
        self.level = self.level.saturating_sub(self.units(count - from_burst));
    }

    fn give(&mut self, count: u64) {
        self.level = self.level.saturating_add(self.units(count)).min(self.capacity());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bucket(size: u64, burst: u64) -> BucketConfig {
        BucketConfig { size, refill: SECOND, one_time_burst: burst }
    }

    #[test]
    fn zero_size_or_zero_time_means_no_limit() {
        let now = Instant::now();
        let zero_time = BucketConfig { size: 1, refill: Duration::ZERO, one_time_burst: 0 };
        for none in [bucket(0, 0), zero_time] {
            let mut limiter = RateLimiter::new(Some(none), Some(none), now);
            assert_eq!(limiter.admit(u64::MAX, u64::MAX, now), Ok(()));
        }
    }

    #[test]
    fn the_burst_is_spent_first_and_once() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(Some(bucket(100, 50)), None, now);
        assert_eq!(limiter.admit(50, 1, now), Ok(()));
        assert_eq!(limiter.admit(100, 1, now), Ok(()));
        assert_eq!(limiter.admit(100, 1, now), Err(now + SECOND));
        assert_eq!(limiter.admit(100, 1, now + SECOND * 9), Ok(()));
        assert_eq!(limiter.admit(1, 1, now + SECOND * 9), Err(now + SECOND * 9 + SECOND / 100));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_when_full_and_is_paid_off() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(Some(bucket(100, 0)), None, now);
        assert_eq!(limiter.admit(350, 1, now), Ok(()));
        // 250 tokens of debt, then 100 more for the next.
        assert_eq!(limiter.admit(350, 1, now), Err(now + SECOND * 7 / 2));
    }

    #[test]
    fn neither_bucket_is_drained_when_the_other_refuses() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(Some(bucket(100, 0)), Some(bucket(1, 0)), now);
        assert_eq!(limiter.admit(10, 1, now), Ok(()));
        assert_eq!(limiter.admit(10, 1, now), Err(now + SECOND));
        assert_eq!(limiter.admit(90, 0, now), Ok(()));
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(Some(bucket(100, 0)), Some(bucket(1, 0)), now);
        limiter.admit(100, 1, now).unwrap();
        limiter.update(BucketUpdate::Keep, BucketUpdate::Set(bucket(0, 0)), now);
        assert!(limiter.admit(1, 1, now).is_err());
        limiter.update(BucketUpdate::Set(bucket(10, 0)), BucketUpdate::Keep, now);
        assert_eq!(limiter.admit(10, 1, now), Ok(()));
    }

    proptest! {
        /// For any requests at any times, no more passes than bucket, burst and time allow, and
        /// waiting until the returned time is enough.
        #[test]
        fn never_more_than_the_rate(
            size in 1u64..10_000,
            refill_ms in 1u64..10_000,
            burst in 0u64..1000,
            requests in prop::collection::vec((1u64..5000, 0u64..2000), 1..60),
        ) {
            let start = Instant::now();
            let refill = Duration::from_millis(refill_ms);
            let bytes = BucketConfig { size, refill, one_time_burst: burst };
            let mut limiter = RateLimiter::new(Some(bytes), None, start);
            let mut now = start;
            let mut passed: u128 = 0;
            let mut largest = 0;
            for (count, pause_ms) in requests {
                now += Duration::from_millis(pause_ms);
                if let Err(at) = limiter.admit(count, 1, now) {
                    prop_assert!(at > now);
                    now = at;
                    prop_assert_eq!(limiter.admit(count, 1, now), Ok(()));
                }
                passed += u128::from(count);
                largest = largest.max(count);
                let earned = (now - start).as_nanos() * u128::from(size) / refill.as_nanos();
                let limit = u128::from(size.max(largest)) + u128::from(burst) + earned + 1;
                prop_assert!(passed <= limit, "{passed} > {limit}");
            }
        }
    }
}
