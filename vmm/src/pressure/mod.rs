// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory policy: takes memory from the guest while the host needs it, and gives it back before the
//! guest hurts, without an operator.
//!
//! ```text
//!  balloon statistics ─┐                                       ┌▶ balloon's target
//!  residency, pager ───┼▶ Snapshot ─▶ Policy::decide ─▶ actions ├▶ hints, discards
//!  MemAvailable, PSI ──┘   (pure)                 │             └▶ trials, on the compactor's thread
//!                                                 └▶ journal, log, `GET /memory/policy`
//! ```
//!
//! One thread a machine, `pressure`, started when a policy is first wanted; it sleeps while the policy
//! is off. It is the only writer of the balloon's target, except for a client: a client's target
//! stands until the policy is set again. `main` never waits for it.
//! May use: `compactor`, `parking`, `config`, `mm::paging`, `devices::balloon`. Must not use: KVM, the
//! API.
//!
//! Deciding, without side effects: `snapshot.rs` what is seen and what can be done · `limits.rs` the
//! presets · `host_level.rs`, `guest_state.rs` how both are off · `back_off.rs` leaving alone what did
//! harm · `eviction_budget.rs` processor time · `decide/` the decision.
//! Seeing and doing: `host.rs` the host's files · `control_group.rs` limits of this process's group ·
//! `eviction.rs` trials · `journal.rs` the last decisions · `worker.rs` the thread.

mod back_off;
mod control_group;
mod decide;
mod eviction;
mod eviction_budget;
mod guest_state;
mod host;
mod host_level;
mod journal;
mod limits;
mod snapshot;
mod worker;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mm::units::{Bytes, Pages};

use crate::compactor::{BackgroundWork, LiveGuest};

pub use eviction::EvictionCounters;
pub use guest_state::GuestState;
pub use host::HostMemory;
pub use host_level::HostLevel;
pub use journal::{Entry, Journal};
pub use limits::Limits;
pub use snapshot::{Action, Decision, GuestFigures, MemoryUse};
use worker::Worker;

/// What the policy sees and has done.
#[derive(Debug, Clone, Default)]
pub struct PolicyStatus {
    /// The numbers that it decides by; `None` before the first round.
    pub limits: Option<Limits>,
    /// Whether a client holds the balloon.
    pub balloon_held: bool,
    /// The balloon's target.
    pub target: Option<Pages>,
    /// The host's figures, or its control group's.
    pub host: HostMemory,
    /// Below this the host is short.
    pub host_reserve: Bytes,
    /// How the host is off.
    pub level: HostLevel,
    /// How the guest is off.
    pub guest: GuestState,
    /// The guest's figures, if it sends any.
    pub figures: Option<GuestFigures>,
    /// Where guest memory is.
    pub memory: MemoryUse,
    /// Guest memory that is parked or on trial.
    pub absent: Bytes,
    /// Why cold memory cannot be evicted, if so.
    pub no_eviction: Option<String>,
    /// Rounds for which nothing is taken by the balloon, and by eviction, since that did harm.
    pub backing_off: [u32; 2],
    /// Processor time for eviction since the policy started, and how long ago that was.
    pub spent: Duration,
    /// Time since the policy started.
    pub age: Duration,
    /// What was done.
    pub counters: PolicyCounters,
    /// What evictions came to.
    pub evictions: EvictionCounters,
    /// The last decisions.
    pub journal: Journal,
}

/// What a policy has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounters {
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the guest was hurt.
    pub guest_hurt: u64,
    /// Times that the balloon was made larger.
    pub balloon_raised: u64,
    /// Times that it was made smaller.
    pub balloon_lowered: u64,
    /// Rounds of hints.
    pub hints: u64,
    /// Searches for resident pages of the balloon.
    pub discards: u64,
    /// Times that parked memory was brought back.
    pub unparks: u64,
    /// Decisions that could not be carried out.
    pub failures: u64,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    limits: Option<Limits>,
    client_target: Option<Pages>,
    stop: bool,
}

/// What the thread and its handle share.
#[derive(Default)]
struct Shared {
    orders: Mutex<Orders>,
    told: Condvar,
    status: Mutex<PolicyStatus>,
}

/// The handle of the thread; dropping it ends the thread.
pub struct MemoryPolicy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a policy works with.
pub struct Machine {
    /// Memory and balloon.
    pub guest: LiveGuest,
    /// The balloon's target as the client set it.
    pub target: Pages,
    /// The pager, or why there is none.
    pub paging: Result<Arc<mm::paging::Paging>, String>,
    /// A way to the compactor's thread.
    pub work: BackgroundWork,
}

impl MemoryPolicy {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host gives no thread.
    pub fn start(machine: Machine, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(machine, limits, Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("pressure".into())
            .stack_size(256 << 10)
            .spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets other limits. The balloon is the policy's again.
    pub fn set_limits(&self, limits: Limits) {
        self.order(|orders| {
            orders.limits = Some(limits);
            orders.client_target = None;
        });
    }

    /// A client has set the balloon's target: it stands until [`set_limits`](Self::set_limits).
    pub fn client_set_target(&self, target: Pages) {
        self.order(|orders| orders.client_target = Some(target));
    }

    /// What it sees and has done.
    pub fn status(&self) -> PolicyStatus {
        lock(&self.shared.status).clone()
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut lock(&self.shared.orders));
        self.shared.told.notify_one();
    }
}

impl Drop for MemoryPolicy {
    fn drop(&mut self) {
        self.order(|orders| orders.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the memory policy's thread had panicked");
        }
    }
}

#[cfg(test)]
mod tests;

/// A panic elsewhere leaves these as they are: each change is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
