// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limit for log lines: a token bucket for each place in the source.
//!
//! A guest or a client can trigger a log line at any rate. Here, in front of the sink, the limit
//! applies to every caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devices::throttle::Throttle;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Told how many lines of a place were suppressed, before the next one that is not.
pub(super) type Report = Arc<dyn Fn(&Metadata<'_>, u64) + Send + Sync>;

/// The allowance of one place: lines at once, and the time for one more.
type Allowance = (u32, Duration);

/// Errors, warnings and information: the levels that are always enabled.
const ALWAYS_ON: Allowance = (20, Duration::from_secs(1));
/// Debugging: turned on to see every event.
const DEBUGGING: Allowance = (2000, Duration::from_millis(2));

/// The layer.
pub(super) struct LogThrottle {
    places: Mutex<HashMap<Identifier, Throttle>>,
    report: Report,
}

impl LogThrottle {
    pub(super) fn new(report: Report) -> Self {
        Self { places: Mutex::default(), report }
    }

    /// Whether a line of `place` goes through now.
    fn admit(&self, place: &'static Metadata<'static>) -> bool {
        let always_on = *place.level() <= Level::INFO;
        let (burst, refill) = if always_on { ALWAYS_ON } else { DEBUGGING };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let throttle = places.entry(place.callsite());
        let admitted = throttle.or_insert_with(|| Throttle::new(burst, refill)).admit();
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
        self.admit(event.metadata())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn each_place_has_its_own_limit_and_says_what_was_suppressed() {
        let suppressed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&suppressed);
        let limit = LogThrottle::new(Arc::new(move |_, count| {
            seen.fetch_add(count, Ordering::Relaxed);
        }));
        let lines = Arc::new(AtomicU64::new(0));
        let layer = tracing_subscriber::registry().with(limit).with(Count(Arc::clone(&lines)));
        tracing::subscriber::with_default(layer, || {
            for _ in 0..100 {
                tracing::warn!("a flood");
            }
            tracing::warn!("another place");
        });
        // A slow machine may earn more lines on the way; none is neither out nor counted.
        let out = lines.load(Ordering::Relaxed);
        assert!((21..101).contains(&out), "{out} lines");
        assert!(suppressed.load(Ordering::Relaxed) <= 101 - out);
    }

    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
