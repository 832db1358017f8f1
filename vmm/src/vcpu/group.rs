// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All vCPUs of a machine, and the phase they are in together.
//!
//! ```text
//!  start ──▶ Running ◀──────▶ Paused         commands are the phase itself: set it, kick everybody,
//!               └─── Stopped ◀───┘           and wait until nobody is in guest code any more
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::kick::{self, Kickable};
use super::{Left, Vcpu};
use crate::exit::{ExitReason, ExitSignal};

/// vCPU threads parse no input and keep nothing large on the stack.
const STACK: usize = 256 << 10;

/// One kick gets a thread out of KVM_RUN for certain, but not out of a device that is just about to
/// wait for the host (for room in a pipe, say): then another does.
const KICK_AGAIN: Duration = Duration::from_millis(50);

/// A vCPU thread could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread of a vCPU: {0}")]
pub struct StartError(#[from] io::Error);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Stopped,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// Threads that are in guest code, or on their way in or out.
    active: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until guest code may run (true) or never will again (false).
    ///
    /// Called, and left, as an active thread.
    fn may_run(&self, on_resume: impl FnOnce()) -> bool {
        let mut state = self.lock();
        let was_paused = state.phase == Phase::Paused;
        if was_paused {
            state.active -= 1;
            self.changed.notify_all();
            while state.phase == Phase::Paused {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.active += 1;
        }
        let run = state.phase == Phase::Running;
        drop(state);
        if run && was_paused {
            on_resume();
        }
        run
    }
}

/// Tells the others when a thread ends, by whatever way.
struct Finish {
    shared: Arc<Shared>,
    exit: Arc<ExitSignal>,
    number: u8,
}

impl Drop for Finish {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = format!("the thread of vCPU {} panicked", self.number);
            self.exit.raise(ExitReason::HostError(cause));
        }
        self.shared.lock().active -= 1;
        self.shared.changed.notify_all();
    }
}

/// The vCPUs of one machine. Dropping it stops them.
pub struct VcpuGroup {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuGroup {
    /// Starts a thread for each of `vcpus`; `on_thread` is the first thing that each does.
    pub fn start(
        vcpus: Vec<Vcpu>,
        on_thread: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        kick::install()?;
        let state = State { phase: Phase::Running, active: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut group = Self { shared, threads: Vec::with_capacity(vcpus.len()) };
        for vcpu in vcpus {
            // Dropping the group stops those that were started.
            group.spawn(vcpu, on_thread.clone())?;
        }
        Ok(group)
    }

    fn spawn(
        &mut self,
        mut vcpu: Vcpu,
        on_thread: impl Fn() + Send + 'static,
    ) -> Result<(), StartError> {
        self.shared.lock().active += 1;
        let finish = Finish {
            shared: Arc::clone(&self.shared),
            exit: Arc::clone(&vcpu.around.exit),
            number: vcpu.number,
        };
        let name = format!("vcpu{}", vcpu.number);
        let body = move || {
            let finish = finish;
            on_thread();
            // SAFETY: declared after `vcpu` was moved in, so dropped before it.
            let _kickable = unsafe { Kickable::new(&mut vcpu.fd) };
            loop {
                // Tells the guest that time stood still, so that its watchdogs do not bark; a
                // guest without that clock makes it fail, and has no such watchdog.
                let resumed = || {
                    let _ = vcpu.fd.kvmclock_ctrl();
                };
                if !finish.shared.may_run(resumed) || vcpu.run() == Left::Ended {
                    return;
                }
            }
        };
        self.threads.push(thread::Builder::new().name(name).stack_size(STACK).spawn(body)?);
        Ok(())
    }

    /// Brings all vCPUs out of guest code, and returns when they are.
    pub fn pause(&self) {
        self.enter(Phase::Paused);
    }

    /// Lets all vCPUs go on.
    pub fn resume(&self) {
        self.enter(Phase::Running);
    }

    /// Whether vCPUs are paused.
    pub fn paused(&self) -> bool {
        self.shared.lock().phase == Phase::Paused
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.shared.lock();
        if state.phase == phase || state.phase == Phase::Stopped {
            return;
        }
        state.phase = phase;
        self.shared.changed.notify_all();
        drop(state);
        if phase == Phase::Running {
            return;
        }
        self.threads.iter().for_each(kick::kick);
        let mut state = self.shared.lock();
        while state.active > 0 {
            let waited = self.shared.changed.wait_timeout(state, KICK_AGAIN);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                self.threads.iter().for_each(kick::kick);
            }
        }
    }
}

impl Drop for VcpuGroup {
    fn drop(&mut self) {
        self.enter(Phase::Stopped);
        for thread in self.threads.drain(..) {
            // An error is a panic, which the thread has reported as the reason of the exit.
            let _ = thread.join();
        }
    }
}
