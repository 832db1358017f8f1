// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limit for events that a guest or a client can cause, mainly log lines, which must not fill
//! the host's log.
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
    /// Up to when tokens have been added.
    filled: Instant,
    suppressed: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(BURST, REFILL)
    }
}

impl Throttle {
    /// A throttle that admits `burst` at once, then one every `refill`, which is at least 1 ns.
    pub fn new(burst: u32, refill: Duration) -> Self {
        let refill = refill.max(Duration::from_nanos(1));
        Self { burst, refill, tokens: burst, filled: Instant::now(), suppressed: 0 }
    }

    /// Whether another one is admitted now; if so, how many were suppressed since the last one.
    pub fn admit(&mut self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&mut self, now: Instant) -> Option<u64> {
        self.fill(now);
        if self.tokens == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Adds the tokens earned by `now`; part of one stays to be earned.
    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let earned = passed / self.refill.as_nanos();
        let room = u128::from(self.burst - self.tokens);
        match u32::try_from(earned) {
            Ok(earned) if u128::from(earned) < room => {
                self.tokens += earned;
                self.filled += self.refill * earned;
            }
            _ => {
                self.tokens = self.burst;
                self.filled = now.max(self.filled);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_burst_and_then_to_the_rate() {
        let mut throttle = Throttle::default();
        let start = throttle.filled;
        let admitted = (0..1000).filter(|_| throttle.admit_at(start).is_some()).count();
        assert_eq!(admitted, 8);
        assert_eq!(throttle.admit_at(start + REFILL), Some(992));
        assert_eq!(throttle.admit_at(start + REFILL), None);
        assert_eq!(throttle.admit_at(start + REFILL * 100), Some(1));
        let later = start + REFILL * 1000;
        let admitted = (0..20).filter(|_| throttle.admit_at(later).is_some()).count();
        assert_eq!(admitted, 8, "tokens do not pile up beyond the burst");
    }

    #[test]
    fn part_of_a_token_is_not_lost() {
        let mut throttle = Throttle::new(1, REFILL);
        let start = throttle.filled;
        assert_eq!(throttle.admit_at(start), Some(0));
        assert_eq!(throttle.admit_at(start + REFILL * 3 / 4), None);
        assert_eq!(throttle.admit_at(start + REFILL), Some(1));
    }

    #[test]
    fn a_clock_that_steps_back_admits_nothing_more() {
        let mut throttle = Throttle::default();
        let start = throttle.filled + REFILL * 10;
        let admitted = (0..20).filter(|_| throttle.admit_at(start).is_some()).count();
        assert_eq!(admitted, 8);
        assert_eq!(throttle.admit_at(start - REFILL * 10), None);
    }
}
