// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work in CPU time that no other thread needs, until another thread waits for it.
//!
//! A thread of the lowest priority may not run for long on a busy host. A thread that waits for
//! something that it has, such as a lock or a block of guest memory, would wait as long: so it gets its
//! usual priority back until the next point where it has nothing ([`IdleWork::relax`]). Linux lets a thread
//! without privileges lower a priority, but not raise it again: then work is done at the priority
//! next to the usual one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::gettid;

/// The lowest priority, as a nice value.
const LOWEST: i32 = 19;

/// The thread that does the work, if there is one.
#[derive(Debug, Default)]
pub struct IdleWork {
    worker: Mutex<Option<IdleWorker>>,
    /// The worker has the lowest priority now.
    is_low: AtomicBool,
    /// It had, and has its usual one for a while.
    is_hurried: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct IdleWorker {
    thread: Pid,
    /// Its nice value at first.
    usual: i32,
}

impl IdleWork {
    /// Runs `work` on a thread of its own with the lowest priority, and waits for it. If the host
    /// cannot start one, the calling thread does the work. One thread at a time.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let mut work = Some(work);
        let done = std::thread::scope(|scope| {
            let quiet = || {
                let _low = self.begin();
                work.take().map(|work| work())
            };
            let builder = std::thread::Builder::new().name("mm-idle".into()).stack_size(256 << 10);
            let thread = builder.spawn_scoped(scope, quiet).ok()?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        done.unwrap_or_else(|| work.take().expect("no thread has taken it")())
    }

    /// Gives the worker its usual priority, as a thread waits for it.
    pub fn hurry(&self) {
        if self.is_low.load(Ordering::Acquire)
            && let Some(worker) = *self.worker()
            && self.is_low.swap(false, Ordering::AcqRel)
        {
            worker.set_priority(worker.usual);
            self.is_hurried.store(true, Ordering::Release);
        }
    }

    /// Lowers the worker's priority again after [`hurry`](Self::hurry); called by the worker where no
    /// thread waits for it.
    pub fn relax(&self) {
        if self.is_hurried.load(Ordering::Acquire)
            && let Some(worker) = *self.worker()
            && self.is_hurried.swap(false, Ordering::AcqRel)
        {
            worker.set_priority(LOWEST);
            self.is_low.store(true, Ordering::Release);
        }
    }

    /// Lowers the priority of the calling thread, if it can be raised again.
    fn begin(&self) -> LowPriority<'_> {
        let usual = getpriority_process(None).unwrap_or(0);
        let worker = IdleWorker { thread: gettid(), usual };
        // Only a filter of system calls can refuse the first.
        if worker.set_priority(usual + 1) && worker.set_priority(usual) {
            worker.set_priority(LOWEST);
            *self.worker() = Some(worker);
            self.is_low.store(true, Ordering::Release);
        }
        LowPriority(self)
    }

    fn worker(&self) -> MutexGuard<'_, Option<IdleWorker>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleWorker {
    /// Whether that was permitted.
    fn set_priority(self, nice: i32) -> bool {
        let set = setpriority_process(Some(self.thread), nice);
        if let Err(error) = set {
            tracing::debug!("cannot set a thread's priority to {nice}: {error}");
        }
        set.is_ok()
    }
}

/// A worker until this is dropped: its number may be another thread's afterwards.
struct LowPriority<'a>(&'a IdleWork);

impl Drop for LowPriority<'_> {
    fn drop(&mut self) {
        *self.0.worker() = None;
        self.0.is_low.store(false, Ordering::Release);
        self.0.is_hurried.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[test]
    fn idle_work_has_the_lowest_priority_until_others_wait_for_it() {
        let (idle, before) = (IdleWork::default(), priority());
        let other = |act: fn(&IdleWork)| {
            std::thread::scope(|scope| scope.spawn(|| act(&idle)).join().unwrap());
        };
        let seen = idle.run(|| {
            let low = priority();
            other(IdleWork::hurry);
            let hurried = priority();
            idle.relax();
            let relaxed = priority();
            other(IdleWork::hurry);
            [low, hurried, relaxed, priority()]
        });
        match seen[0] {
            LOWEST => assert_eq!(seen, [LOWEST, before, LOWEST, before]),
            // Without the privilege to raise it again.
            low => assert_eq!((low, seen[1]), (before + 1, before + 1)),
        }
        assert_eq!(priority(), before, "the caller keeps its own");
        // No worker is left to hurry.
        idle.hurry();
        assert_eq!((priority(), idle.worker().is_none()), (before, true));
    }

    #[test]
    fn a_panic_in_idle_work_is_the_callers() {
        let idle = IdleWork::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            idle.run(|| panic!("injected"));
        }));
        assert!(panicked.is_err() && idle.worker().is_none());
    }
}
