// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that touches memory all the time and notes how long each touch takes: what a guest
//! feels of the host's work on its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::reason;
use crate::console::Answer;
use crate::region::Region;

/// Buckets for each power of two: a delay is known to an eighth.
const FINE: usize = 8;
const BUCKETS: usize = 64 * FINE;

/// How many touches took how long.
struct Delays {
    counts: Vec<u64>,
    longest: u64,
}

impl Delays {
    fn new() -> Self {
        Self { counts: vec![0; BUCKETS], longest: 0 }
    }

    fn add(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.longest = self.longest.max(nanos);
    }

    /// The delay, in nanoseconds, that was not exceeded by `permille` of a thousand touches.
    fn quantile(&self, permille: u64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total * permille).div_ceil(1000);
        for (at, count) in self.counts.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left == 0 {
                return limit(at).min(self.longest);
            }
        }
        self.longest
    }
}

/// The bucket of a delay: its power of two, and the eighth of that.
fn bucket(nanos: u64) -> usize {
    let power = nanos.max(FINE as u64).ilog2() as usize;
    power * FINE + (nanos.max(FINE as u64) >> (power - 3)) as usize - FINE
}

/// The longest delay of a bucket.
fn limit(bucket: usize) -> u64 {
    let (power, eighth) = (bucket / FINE, (bucket % FINE) as u64);
    ((FINE as u64 + eighth + 1) << power.saturating_sub(3)).saturating_sub(1)
}

/// The thread, if it runs.
#[derive(Default)]
pub(crate) struct Touching {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Delays, bool)>>,
}

impl Touching {
    /// `touch-start SIZE`.
    pub(crate) fn start(&mut self, bytes: usize) -> Answer {
        if self.thread.is_some() {
            return Err("touching already".into());
        }
        self.stop = Arc::default();
        let stop = Arc::clone(&self.stop);
        let mut region = Region::map(bytes, 301, false).map_err(|e| reason("mapping")(&e))?;
        let work = move || {
            region.fill();
            let mut delays = Delays::new();
            let mut intact = true;
            for index in (0..region.pages()).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let start = Instant::now();
                intact &= region.touch(index);
                delays.add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            (delays, intact && region.damaged() == 0)
        };
        let thread = std::thread::Builder::new().spawn(work).map_err(|e| reason("thread")(&e))?;
        self.thread = Some(thread);
        Ok(vec![])
    }

    /// `touch-stop`: `touches=`, `p50_ns=`, `p99_ns=`, `p999_ns=`, `max_ns=`, `damaged=`.
    pub(crate) fn stop(&mut self) -> Answer {
        let thread = self.thread.take().ok_or("not touching")?;
        self.stop.store(true, Ordering::Relaxed);
        let (delays, intact) = thread.join().map_err(|_| "the thread panicked".to_owned())?;
        Ok(vec![
            format!("touches={}", delays.counts.iter().sum::<u64>()),
            format!("p50_ns={}", delays.quantile(500)),
            format!("p99_ns={}", delays.quantile(990)),
            format!("p999_ns={}", delays.quantile(999)),
            format!("max_ns={}", delays.longest),
            format!("damaged={}", u8::from(!intact)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_delays() {
        for nanos in [0, 1, 8, 9, 15, 16, 17, 100, 1000, 123_456, 1 << 40, u64::MAX >> 1] {
            let at = bucket(nanos);
            assert!(nanos <= limit(at), "{nanos} is above {}", limit(at));
            assert!(at <= 8 * FINE || limit(at - 1) < nanos, "{nanos} belongs below");
        }
    }

    #[test]
    fn quantiles_come_from_the_buckets() {
        let mut delays = Delays::new();
        (0..990).for_each(|_| delays.add(100));
        (0..10).for_each(|_| delays.add(1_000_000));
        assert!((100..=112).contains(&delays.quantile(500)));
        assert!((100..=112).contains(&delays.quantile(990)));
        assert_eq!(delays.quantile(999), 1_000_000);
    }
}
