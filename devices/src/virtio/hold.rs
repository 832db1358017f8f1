// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The longest time that something was held: a device's lock, a turn of an event loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest hold so far, for metrics; any thread may record and read.
///
/// ```
/// use devices::virtio::LongestHold;
///
/// let longest = LongestHold::default();
/// {
///     let _hold = longest.start();
///     // ... the lock is held ...
/// }
/// println!("{} us", longest.micros());
/// ```
#[derive(Debug, Default)]
pub struct LongestHold {
    micros: AtomicU64,
}

impl LongestHold {
    /// Nothing held yet.
    pub const fn new() -> Self {
        Self { micros: AtomicU64::new(0) }
    }

    /// Begins a hold, which is recorded when the guard is dropped.
    ///
    /// Start it after the lock is taken, and drop it before the lock: waiting is not holding.
    pub fn start(&self) -> Hold<'_> {
        Hold { longest: self, since: Instant::now() }
    }

    /// Records a hold of `time`.
    pub fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// The longest hold in microseconds, 0 before the first.
    pub fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    /// The longest hold since the last call, in microseconds; begins anew.
    pub fn take_micros(&self) -> u64 {
        self.micros.swap(0, Ordering::Relaxed)
    }
}

/// A hold that is under way.
#[derive(Debug)]
#[must_use = "the hold ends where this is dropped"]
pub struct Hold<'a> {
    longest: &'a LongestHold,
    since: Instant,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.longest.record(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_longest_until_it_is_taken() {
        let longest = LongestHold::new();
        for millis in [3, 7, 5] {
            longest.record(Duration::from_millis(millis));
        }
        assert_eq!(longest.micros(), 7000);
        assert_eq!((longest.take_micros(), longest.micros()), (7000, 0));
        longest.record(Duration::MAX);
        assert_eq!(longest.micros(), u64::MAX);
    }
}
