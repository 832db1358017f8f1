// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limit for log lines: a token bucket for each place in the source.
//!
//! A guest or a client can trigger a log line at any rate. Here, in front of the sink, the limit
//! applies to every caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Told how many lines of a place were suppressed, before the next one that is not.
pub(super) type Report = Arc<dyn Fn(&Metadata<'_>, u64) + Send + Sync>;

/// Allowance of one place.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Lines at once.
    burst: u32,
    /// Time for one more.
    refill: Duration,
}

/// Errors, warnings and information: the levels that are always enabled.
const ALWAYS_ON: Allowance = Allowance { burst: 20, refill: Duration::from_secs(1) };
/// Debugging: turned on to see every event.
const DEBUGGING: Allowance = Allowance { burst: 2000, refill: Duration::from_millis(2) };

/// The layer.
pub(super) struct LogThrottle {
    places: Mutex<HashMap<Identifier, Bucket>>,
    report: Report,
}

impl LogThrottle {
    pub(super) fn new(report: Report) -> Self {
        Self { places: Mutex::default(), report }
    }

    /// Whether a line of `place` goes through at `now`.
    fn admit(&self, place: &'static Metadata<'static>, now: Instant) -> bool {
        let level = *place.level();
        let allowance = if level <= Level::INFO { ALWAYS_ON } else { DEBUGGING };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = places.entry(place.callsite());
        let bucket = bucket.or_insert_with(|| Bucket::full(allowance, now));
        let admitted = bucket.take(allowance, now);
        drop(places);
        match admitted {
            Some(0) => true,
            Some(suppressed) => {
                (self.report)(place, suppressed);
                true
            }
            None => false,
        }
    }
}

impl<S: Subscriber> Layer<S> for LogThrottle {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admit(event.metadata(), Instant::now())
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// Up to when tokens have been added.
    filled: Instant,
    suppressed: u64,
}

impl Bucket {
    fn full(allowance: Allowance, now: Instant) -> Self {
        Self { tokens: allowance.burst, filled: now, suppressed: 0 }
    }

    /// Takes a token; returns the number of refusals since the last token.
    fn take(&mut self, allowance: Allowance, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = passed / allowance.refill.as_nanos();
        let room = u128::from(allowance.burst - self.tokens);
        if gained >= room {
            self.tokens = allowance.burst;
            self.filled = now;
        } else if let Ok(gained) = u32::try_from(gained) {
            self.tokens += gained;
            self.filled += allowance.refill * gained;
        }
        if self.tokens == 0 {
            self.suppressed += 1;
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
    fn a_burst_then_a_rate_and_the_rest_is_counted() {
        let start = Instant::now();
        let allowance = Allowance { burst: 3, refill: Duration::from_secs(1) };
        let mut bucket = Bucket::full(allowance, start);
        let taken: Vec<_> = (0..5).map(|_| bucket.take(allowance, start)).collect();
        assert_eq!(taken, [Some(0), Some(0), Some(0), None, None]);
        let later = start + Duration::from_millis(1500);
        assert_eq!(bucket.take(allowance, later), Some(2));
        assert_eq!(bucket.take(allowance, later), None);
        // Half a token was there: another half, and one goes through.
        assert_eq!(bucket.take(allowance, start + Duration::from_secs(2)), Some(1));
        let much_later = start + Duration::from_secs(1000);
        let again = (0..10).filter(|_| bucket.take(allowance, much_later).is_some()).count();
        assert_eq!(again, 3, "tokens do not pile up beyond the burst");
    }
}
