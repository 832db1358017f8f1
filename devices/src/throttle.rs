// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limit for events that a guest can cause, mainly log lines, which must not fill the host's
//! log.
//!
//! ```
//! use devices::throttle::Throttle;
//!
//! let mut throttle = Throttle::default();
//! if let Some(suppressed) = throttle.admit() {
//!     tracing::warn!(suppressed, "descriptor chain loops");
//! }
//! ```

use std::time::{Duration, Instant};

use mm::units::SaturatingInto;

/// Lines admitted at once.
const BURST: u32 = 8;
/// Time after which one more line is admitted.
const REFILL: Duration = Duration::from_secs(2);

/// A token bucket; for log lines by default: eight at once, then one every two seconds.
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    refill: Duration,
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(BURST, REFILL)
    }
}

impl Throttle {
    /// A throttle that admits `burst` at once, then one every `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, tokens: burst, refilled: Instant::now(), suppressed: 0 }
    }

    /// Whether another one is admitted now; if so, how many were suppressed since the last one.
    pub fn admit(&mut self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled);
        let earned = (passed.as_millis() / self.refill.as_millis().max(1)).saturating_u32();
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.burst);
            self.refilled = now;
        }
        if self.tokens == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_burst_and_then_to_the_rate() {
        let mut throttle = Throttle::default();
        let start = throttle.refilled;
        let admitted = (0..1000).filter(|_| throttle.admit_at(start).is_some()).count();
        assert_eq!(admitted, 8);
        assert_eq!(throttle.admit_at(start + REFILL), Some(992));
        assert_eq!(throttle.admit_at(start + REFILL), None);
        assert_eq!(throttle.admit_at(start + REFILL * 100), Some(1));
    }

    #[test]
    fn a_clock_that_steps_back_admits_nothing_more() {
        let mut throttle = Throttle::default();
        let start = throttle.refilled + REFILL * 10;
        let admitted = (0..20).filter(|_| throttle.admit_at(start).is_some()).count();
        assert_eq!(admitted, 8);
        assert_eq!(throttle.admit_at(start - REFILL * 10), None);
    }
}
