// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work in CPU time that no other thread needs, until another thread waits for it.
//!
//! The thread has the scheduling policy SCHED_IDLE, under which every other thread takes the CPU
//! from it at once. The lowest nice value is not enough: a thread that has it may keep the CPU to the
//! end of its slice, for 3 ms, whenever another one wakes up (`kernel/sched/fair.c`,
//! `check_preempt_wakeup_fair`), and to answer one request of a guest several threads wake up.
//!
//! Such a thread may not run for long on a busy host. A thread that waits for something that it has,
//! such as a lock or a block of guest memory, would wait as long: so it gets its usual policy back until
//! the next point where it has nothing ([`IdleWork::relax`]). Linux does not let a thread without
//! privileges return from SCHED_IDLE, nor from a lower priority: then work is done at the priority next
//! to the usual one.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::gettid;

/// How often the waiting thread looks whether the work is urgent.
const LOOK: Duration = Duration::from_millis(50);

/// The thread that does the work, if there is one.
#[derive(Debug, Default)]
pub struct IdleWork {
    worker: Mutex<Option<IdleWorker>>,
    /// The worker runs only where no other thread wants to.
    is_low: AtomicBool,
    /// It did, and has its usual policy for a while.
    is_hurried: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct IdleWorker {
    thread: Pid,
    /// Its policy at first.
    usual: Scheduling,
}

/// A scheduling policy, and the priority in it if it is one of real time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheduling {
    policy: libc::c_int,
    priority: libc::c_int,
}

impl IdleWork {
    /// Runs `work` on a thread of its own, in idle time, and waits for it. While `is_urgent`, as
    /// something waits for its end, it is [hurried](Self::hurry). If the host cannot start a thread,
    /// the calling one does the work. One thread at a time.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send, is_urgent: &dyn Fn() -> bool) -> T {
        let mut work = Some(work);
        let done = std::thread::scope(|scope| {
            let (running, ended) = mpsc::channel::<()>();
            let quiet = || {
                let _running = running;
                let _low = self.begin();
                work.take().map(|work| work())
            };
            let builder = std::thread::Builder::new().name("mm-idle".into()).stack_size(256 << 10);
            let thread = builder.spawn_scoped(scope, quiet).ok()?;
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if is_urgent() {
                    self.hurry();
                }
            }
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        done.unwrap_or_else(|| work.take().expect("no thread has taken it")())
    }

    /// Gives the worker its usual policy, as a thread waits for it.
    pub fn hurry(&self) {
        if self.is_low.load(Ordering::Acquire)
            && let Some(worker) = *self.worker()
            && self.is_low.swap(false, Ordering::AcqRel)
        {
            worker.set(worker.usual);
            self.is_hurried.store(true, Ordering::Release);
        }
    }

    /// Returns the worker to idle time after [`hurry`](Self::hurry); called by the worker where no
    /// thread waits for it.
    pub fn relax(&self) {
        if self.is_hurried.load(Ordering::Acquire)
            && let Some(worker) = *self.worker()
            && self.is_hurried.swap(false, Ordering::AcqRel)
        {
            worker.set(Scheduling::IDLE);
            self.is_low.store(true, Ordering::Release);
        }
    }

    /// Lets the calling thread run in idle time only, if that can be undone.
    fn begin(&self) -> LowPriority<'_> {
        let nice = getpriority_process(None).unwrap_or(0);
        if set_nice(nice + 1)
            && set_nice(nice)
            && let Ok(usual) = Scheduling::of_this_thread()
        {
            let worker = IdleWorker { thread: gettid(), usual };
            if worker.set(Scheduling::IDLE) {
                *self.worker() = Some(worker);
                self.is_low.store(true, Ordering::Release);
            }
        }
        LowPriority(self)
    }

    fn worker(&self) -> MutexGuard<'_, Option<IdleWorker>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleWorker {
    /// Whether that was permitted.
    fn set(self, to: Scheduling) -> bool {
        let set = to.set(self.thread);
        if let Err(error) = &set {
            tracing::debug!("cannot set a thread's scheduling policy to {to:?}: {error}");
        }
        set.is_ok()
    }
}

impl Scheduling {
    const IDLE: Self = Self { policy: libc::SCHED_IDLE, priority: 0 };

    fn of_this_thread() -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let policy = unsafe { libc::sched_getscheduler(0) };
        let mut param = libc::sched_param { sched_priority: 0 };
        // SAFETY: `param` is writable, and of the kind that is expected.
        let got = unsafe { libc::sched_getparam(0, &raw mut param) };
        match policy < 0 || got < 0 {
            true => Err(io::Error::last_os_error()),
            false => Ok(Self { policy, priority: param.sched_priority }),
        }
    }

    fn set(self, thread: Pid) -> io::Result<()> {
        let param = libc::sched_param { sched_priority: self.priority };
        let thread = thread.as_raw_nonzero().get();
        // SAFETY: `param` is read only, and of the kind that is expected.
        let result = unsafe { libc::sched_setscheduler(thread, self.policy, &raw const param) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Sets the calling thread's nice value; whether that was permitted.
fn set_nice(nice: i32) -> bool {
    let set = setpriority_process(None, nice);
    if let Err(error) = set {
        tracing::debug!("cannot set a thread's priority to {nice}: {error}");
    }
    set.is_ok()
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

    fn now() -> (Scheduling, i32) {
        (Scheduling::of_this_thread().unwrap(), getpriority_process(None).unwrap())
    }

    #[test]
    fn idle_work_runs_in_idle_time_until_others_wait_for_it() {
        let (idle, before) = (IdleWork::default(), now());
        let other = |act: fn(&IdleWork)| {
            std::thread::scope(|scope| scope.spawn(|| act(&idle)).join().unwrap());
        };
        let seen = idle.run(
            || {
                let low = now();
                other(IdleWork::hurry);
                let hurried = now();
                idle.relax();
                let relaxed = now();
                other(IdleWork::hurry);
                [low, hurried, relaxed, now()]
            },
            &|| false,
        );
        match seen[0] {
            (Scheduling::IDLE, nice) => {
                let low = (Scheduling::IDLE, nice);
                assert_eq!((seen, nice), ([low, before, low, before], before.1));
            }
            // Without the privilege to return from it.
            low => assert_eq!((low, seen[1]), ((before.0, before.1 + 1), low)),
        }
        assert_eq!(now(), before, "the caller keeps its own");
        // No worker is left to hurry.
        idle.hurry();
        assert_eq!((now(), idle.worker().is_none()), (before, true));
    }

    #[test]
    fn idle_work_is_hurried_once_it_is_urgent() {
        let idle = IdleWork::default();
        // It ends only then.
        idle.run(|| while now().0 == Scheduling::IDLE {}, &|| true);
    }

    #[test]
    fn a_panic_in_idle_work_is_the_callers() {
        let idle = IdleWork::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            idle.run(|| panic!("injected"), &|| false);
        }));
        assert!(panicked.is_err() && idle.worker().is_none());
    }
}
