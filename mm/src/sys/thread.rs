// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads of our own.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time that the calling thread has taken so far. On a busy host less of it passes than time.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The kernel's values are never negative, and below a second.
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(|part| part.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// Blocks all signals for the calling thread, so that none interrupts it or is handled on it.
///
/// A pending signal keeps the thread's page fault in the kernel from waiting: the fault is reported
/// again and again until it is resolved.
pub fn block_signals() {
    // SAFETY: all zeroes make a `sigset_t`.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a `sigset_t`.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: as above; the former mask is not asked for.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    debug_assert_eq!(failed, 0, "a full set of signals is always accepted");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_takes_no_cpu_time() {
        let before = cpu_time();
        let pause = Duration::from_millis(200);
        std::thread::sleep(pause);
        assert!(cpu_time() - before < pause);
        let busy = cpu_time() + Duration::from_millis(1);
        while cpu_time() < busy {
            std::hint::spin_loop();
        }
    }
}
