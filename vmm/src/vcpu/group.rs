// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All vCPUs of a machine, and the phase they are in together.
//!
//! ```text
//!  start ──▶ Running ◀──────▶ Paused         commands are the phase itself: set it, kick all
//!               └─── Stopped ◀───┘           threads, and wait until none is in guest code
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::kick::{self, Kickable};
use super::{Left, Vcpu};
use crate::exit::{ExitReason, ExitSignal};
use crate::mode::StartMode;

/// vCPU threads parse no input and keep nothing large on the stack.
const STACK: usize = 256 << 10;

/// One kick reliably interrupts KVM_RUN, but not a device that is about to wait for the host (for
/// room in a pipe, for example); a further kick does.
const KICK_AGAIN: Duration = Duration::from_millis(50);

/// Timeout of a pause.
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// vCPUs that did not stop for a pause; all run on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "vCPU {} did not stop within 1 s; the machine is still running, try again",
    .0.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
)]
pub struct PauseError(pub Vec<u8>);

/// A vCPU thread cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread of a vCPU: {0}")]
pub struct StartError(#[from] io::Error);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupPhase {
    Running,
    Paused,
    Stopped,
}

/// Lets the vCPU threads into guest code, or holds them.
struct RunGate {
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    phase: GroupPhase,
    /// Numbers of the vCPUs that are in guest code, or entering or leaving it.
    active: BTreeSet<u8>,
}

impl RunGate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until guest code may run (true) or never will again (false).
    ///
    /// Called, and left, as an active thread.
    fn may_run(&self, number: u8, on_resume: impl FnOnce()) -> bool {
        let mut state = self.lock();
        let was_paused = state.phase == GroupPhase::Paused;
        if was_paused {
            state.active.remove(&number);
            self.changed.notify_all();
            while state.phase == GroupPhase::Paused {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.active.insert(number);
        }
        let run = state.phase == GroupPhase::Running;
        drop(state);
        if run && was_paused {
            on_resume();
        }
        run
    }
}

/// Notifies the others when a thread ends for any reason.
struct Finish {
    shared: Arc<RunGate>,
    exit: Arc<ExitSignal>,
    number: u8,
}

impl Drop for Finish {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = format!("the thread of vCPU {} panicked", self.number);
            self.exit.raise(ExitReason::HostError(cause));
        }
        self.shared.lock().active.remove(&self.number);
        self.shared.changed.notify_all();
    }
}

/// The vCPUs of one machine. Dropping it stops them.
pub struct VcpuGroup {
    shared: Arc<RunGate>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuGroup {
    /// Starts a thread for each of `vcpus`, which first calls `on_thread`.
    ///
    /// # Errors
    ///
    /// [`StartError`]: a thread or the signal handler cannot be set up.
    pub fn start(
        vcpus: Vec<Vcpu>,
        mode: StartMode,
        on_thread: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        kick::install()?;
        let state = GateState { phase: GroupPhase::Running, active: BTreeSet::new() };
        let shared = Arc::new(RunGate { state: Mutex::new(state), changed: Condvar::new() });
        let mut group = Self { shared, threads: Vec::with_capacity(vcpus.len()) };
        for vcpu in vcpus {
            // Dropping the group stops those that were started.
            group.spawn(vcpu, mode, on_thread.clone())?;
        }
        Ok(group)
    }

    fn spawn(
        &mut self,
        mut vcpu: Vcpu,
        mode: StartMode,
        on_thread: impl Fn() + Send + 'static,
    ) -> Result<(), StartError> {
        self.shared.lock().active.insert(vcpu.number);
        let finish = Finish {
            shared: Arc::clone(&self.shared),
            exit: Arc::clone(&vcpu.around.exit),
            number: vcpu.number,
        };
        let name = mode.vcpu_thread(vcpu.number);
        let body = move || {
            let finish = finish;
            on_thread();
            // SAFETY: declared after `vcpu` was moved in, so dropped before it.
            let _kickable = unsafe { Kickable::new(&mut vcpu.fd) };
            loop {
                // Tells the guest that it was paused, so that its watchdogs do not fire; this fails
                // for a guest without that clock, which has no such watchdog.
                let resumed = || {
                    let _ = vcpu.fd.kvmclock_ctrl();
                };
                if !finish.shared.may_run(finish.number, resumed) || vcpu.run() == Left::Ended {
                    return;
                }
            }
        };
        self.threads.push(thread::Builder::new().name(name).stack_size(STACK).spawn(body)?);
        Ok(())
    }

    /// Brings all vCPUs out of guest code, and returns when they are.
    ///
    /// # Errors
    ///
    /// If a vCPU has not stopped after one second; all vCPUs then continue.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.set(GroupPhase::Paused);
        let left = self.wait_until_idle(Some(PAUSE_LIMIT));
        if left.is_empty() {
            return Ok(());
        }
        self.resume();
        Err(PauseError(left))
    }

    /// Lets all vCPUs go on.
    pub fn resume(&self) {
        self.set(GroupPhase::Running);
    }

    /// Whether vCPUs are paused.
    pub fn paused(&self) -> bool {
        self.shared.lock().phase == GroupPhase::Paused
    }

    fn set(&self, phase: GroupPhase) {
        let mut state = self.shared.lock();
        if state.phase != GroupPhase::Stopped {
            state.phase = phase;
            self.shared.changed.notify_all();
        }
    }

    /// Kicks all threads until none is in guest code; those that still are after `limit`.
    fn wait_until_idle(&self, limit: Option<Duration>) -> Vec<u8> {
        let started = Instant::now();
        loop {
            self.threads.iter().for_each(kick::kick);
            let busy = |state: &mut GateState| !state.active.is_empty();
            let changed = &self.shared.changed;
            let waited = changed.wait_timeout_while(self.shared.lock(), KICK_AGAIN, busy);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.active.is_empty() || limit.is_some_and(|limit| started.elapsed() >= limit) {
                return state.active.iter().copied().collect();
            }
        }
    }
}

impl Drop for VcpuGroup {
    fn drop(&mut self) {
        self.set(GroupPhase::Stopped);
        self.wait_until_idle(None);
        for thread in self.threads.drain(..) {
            // An error is a panic, which the thread has reported as the reason of the exit.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(active: &[u8]) -> VcpuGroup {
        let active = active.iter().copied().collect();
        let state = Mutex::new(GateState { phase: GroupPhase::Running, active });
        VcpuGroup { shared: Arc::new(RunGate { state, changed: Condvar::new() }), threads: vec![] }
    }

    #[test]
    fn a_pause_names_the_vcpus_that_do_not_stop_and_lets_all_run_on() {
        let stuck = group(&[1, 3]);
        let error = stuck.pause().unwrap_err();
        assert_eq!(error, PauseError(vec![1, 3]));
        assert!(error.to_string().starts_with("vCPU 1, 3 did not stop within 1 s"), "{error}");
        assert!(!stuck.paused());
        // Lets the group be dropped.
        stuck.shared.lock().active.clear();
    }

    #[test]
    fn a_pause_of_idle_vcpus_holds_until_they_are_resumed() {
        let idle = group(&[]);
        idle.pause().unwrap();
        assert!(idle.paused());
        idle.resume();
        assert!(!idle.paused());
    }
}
