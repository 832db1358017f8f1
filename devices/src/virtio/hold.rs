// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The longest time that something was held: a device's lock, a turn of an event loop.
//!
//! Holds are measured in wall-clock time, as that is how long others wait. A holder that loses its
//! CPU to another process keeps the lock, which is not the code's fault, so measurements also count
//! the CPU time of the holding thread. That costs two system calls per hold and is done only after
//! [`count_cpu_time`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mm::units::SaturatingInto;
use rustix::time::{ClockId, clock_gettime};

/// Whether holds count CPU time.
static CPU_TIME: AtomicBool = AtomicBool::new(false);

/// From now on also counts the CPU time of each hold's thread.
pub fn count_cpu_time() {
    CPU_TIME.store(true, Ordering::Relaxed);
}

/// Whether holds count CPU time.
pub fn counts_cpu_time() -> bool {
    CPU_TIME.load(Ordering::Relaxed)
}

/// CPU time of this thread so far, if it is counted.
fn cpu_time() -> Option<Duration> {
    counts_cpu_time().then(|| {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let secs = Duration::from_secs(time.tv_sec.saturating_u64());
        secs + Duration::from_nanos(time.tv_nsec.saturating_u64())
    })
}

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
    cpu_micros: AtomicU64,
}

impl LongestHold {
    /// Nothing held yet.
    pub const fn new() -> Self {
        Self { micros: AtomicU64::new(0), cpu_micros: AtomicU64::new(0) }
    }

    /// Begins a hold, which is recorded when the guard is dropped.
    ///
    /// Start it after the lock is taken, and drop it before the lock: waiting is not holding.
    pub fn start(&self) -> Hold<'_> {
        Hold { longest: self, since: Instant::now(), cpu_since: cpu_time() }
    }

    /// Records a hold of `time`, in which its thread had the CPU for `cpu_time` if that is known.
    pub fn record(&self, time: Duration, cpu_time: Option<Duration>) {
        let micros = |time: Duration| time.as_micros().saturating_u64();
        self.micros.fetch_max(micros(time), Ordering::Relaxed);
        if let Some(time) = cpu_time {
            self.cpu_micros.fetch_max(micros(time), Ordering::Relaxed);
        }
    }

    /// The longest hold in microseconds, 0 before the first.
    pub fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    /// The most CPU time of one hold in microseconds, 0 before the first that counts it.
    pub fn cpu_micros(&self) -> u64 {
        self.cpu_micros.load(Ordering::Relaxed)
    }
}

/// A hold in progress.
#[derive(Debug)]
#[must_use = "the hold ends where this is dropped"]
pub struct Hold<'a> {
    longest: &'a LongestHold,
    since: Instant,
    cpu_since: Option<Duration>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let cpu = self.cpu_since.and_then(|since| cpu_time()?.checked_sub(since));
        self.longest.record(self.since.elapsed(), cpu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_longest_of_each() {
        let longest = LongestHold::new();
        for millis in [3, 7, 5] {
            longest.record(Duration::from_millis(millis), None);
        }
        assert_eq!((longest.micros(), longest.cpu_micros()), (7000, 0));
        longest.record(Duration::from_millis(1), Some(Duration::from_micros(900)));
        assert_eq!((longest.micros(), longest.cpu_micros()), (7000, 900));
        longest.record(Duration::MAX, None);
        assert_eq!(longest.micros(), u64::MAX);
    }

    /// A sleeping thread keeps the lock but uses no CPU.
    #[test]
    fn cpu_time_leaves_out_what_other_threads_took() {
        count_cpu_time();
        let longest = LongestHold::new();
        {
            let _hold = longest.start();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(longest.micros() >= 20_000);
        assert!(longest.cpu_micros() < longest.micros(), "{longest:?}");
    }
}
