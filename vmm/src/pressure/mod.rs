// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory policy: automatically reclaims memory from the guest while the host needs it, and
//! returns it before the guest is short.
//!
//! ```text
//!  balloon statistics ─┐                                               ┌▶ balloon's target
//!  residency, pager ───┼▶ PressureSnapshot ─▶ Policy::decide ─▶ actions ├▶ hints, discards
//!  MemAvailable, PSI ──┘           (pure)                 │             └▶ trials, on the compactor's thread
//!                                                         └▶ journal, log, `GET /memory/policy`
//! ```
//!
//! One thread per machine, `pressure`, started when a policy is first set; it sleeps while the
//! policy is off. It is the only writer of the balloon's target, except for a client, whose target
//! stays until the policy is set again. `main` never waits for it. May use: `compactor`, `parking`,
//! `config`, `host`, `mm::paging`, `devices::balloon`. Must not use: KVM, the API.
//!
//! Deciding, without side effects: `snapshot.rs` inputs and actions · `limits.rs` the presets ·
//! `host_level.rs`, `host_judge.rs`, `guest_state.rs` the state of both · `back_off.rs` pauses
//! after harm · `eviction_budget.rs` processor time · `decide/` the decision. Observing and acting:
//! `eviction.rs` trials, and room for a host that is short · `journal.rs` the last decisions · `status.rs` reported state · `orders.rs` messages to
//! the thread · `worker.rs` the thread.

mod back_off;
mod decide;
mod eviction;
mod eviction_budget;
mod guest_state;
mod host_judge;
mod host_level;
mod journal;
mod limits;
mod orders;
mod snapshot;
mod status;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use mm::units::Pages;

pub use guest_state::GuestState;
pub use host_level::HostLevel;
pub use journal::{Journal, JournalEntry};
pub use limits::Limits;
use orders::{Orders, PolicyShared, lock};
pub use snapshot::{Action, Decision, GuestFigures, MemoryUse};
pub use status::{EvictionCounters, PolicyCounters, PolicyStatus};
pub use worker::PolicyMachine;
use worker::PolicyWorker;

/// The handle of the thread; dropping it ends the thread.
pub struct MemoryPolicy {
    shared: Arc<PolicyShared>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryPolicy {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host cannot start a thread.
    pub fn start(machine: PolicyMachine, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(PolicyShared::default());
        let worker = PolicyWorker::new(machine, limits, Arc::clone(&shared));
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

    /// A client has set the balloon's target, which stays until [`set_limits`](Self::set_limits).
    pub fn client_set_target(&self, target: Pages) {
        self.order(|orders| orders.client_target = Some(target));
    }

    /// Its state and decisions.
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
            tracing::warn!("the memory policy thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
