// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this machine takes from a thread that only computes. No hold's wall-clock time can stay
//! below that: it is printed beside the holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result, task_error};

/// The worst for a thread that takes no lock and makes no system call that waits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    /// Wall-clock time that it needed for its CPU time.
    pub(super) computing: Duration,
    /// Time between two readings of the clock that follow each other.
    pub(super) gap: Duration,
}

impl Taken {
    pub(super) fn or_worse(self, other: Self) -> Self {
        Self { computing: self.computing.max(other.computing), gap: self.gap.max(other.gap) }
    }
}

/// A thread with the CPU time of holds and none of their work: it computes for as long as the longest
/// of them, sleeps for as long, and so on.
pub(super) struct Computing {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Taken>,
}

impl Computing {
    /// Starts the thread; `hold` is CPU time.
    pub(super) fn start(hold: Duration) -> Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let run = move || {
            let mut worst = Taken::default();
            while !stop.load(Ordering::Relaxed) {
                worst = worst.or_worse(compute(hold));
                thread::sleep(hold);
            }
            worst
        };
        let thread = thread::Builder::new()
            .spawn(run)
            .map_err(|source| Error::Spawn { program: "a thread".into(), source })?;
        Ok(Self { stopping, thread })
    }

    /// Ends the thread.
    pub(super) fn stop(self) -> Result<Taken> {
        self.stopping.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(taken) => Ok(taken),
            Err(_) => task_error("the thread that computes panicked"),
        }
    }
}

/// Reads the clock without a pause until the thread has had `cpu` of CPU time.
fn compute(cpu: Duration) -> Taken {
    let started = Instant::now();
    let end = cpu_time() + cpu;
    let (mut last, mut gap) = (started, Duration::ZERO);
    while cpu_time() < end {
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
    }
    Taken { computing: started.elapsed(), gap }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computing_takes_no_less_than_its_cpu_time() {
        let cpu = Duration::from_millis(3);
        let taken = compute(cpu);
        assert!(taken.computing >= cpu, "{taken:?}");
        assert!(taken.gap <= taken.computing, "{taken:?}");
        assert!(taken.gap > Duration::ZERO, "{taken:?}");
    }

    #[test]
    fn the_thread_reports_its_worst() {
        let cpu = Duration::from_millis(1);
        let computing = Computing::start(cpu).unwrap();
        thread::sleep(Duration::from_millis(5));
        let taken = computing.stop().unwrap();
        assert!(taken.computing >= cpu, "{taken:?}");
    }
}
