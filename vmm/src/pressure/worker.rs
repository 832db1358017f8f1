// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread: observes, decides, acts, and records its decisions.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use devices::balloon::Statistics;
use mm::paging::Paging;
use mm::units::{Bytes, Pages};

use super::decide::Policy;
use super::eviction::Eviction;
use super::guest_state::GuestState;
use super::host_judge::reserve;
use super::host_level::HostLevel;
use super::limits::Limits;
use super::orders::{PolicyShared, lock};
use super::snapshot::{Action, BalloonUse, Decision, GuestFigures, MemoryUse, PressureSnapshot};
use super::status::PolicyStatus;
use crate::compactor::{BackgroundWork, LiveGuest};
use crate::config::PolicyPreset;
use crate::host::control_group::ControlGroups;
use crate::host::memory_figures::HostFigures;
use crate::parking::release_what_is_free;

/// Figures of the guest older than this, and than three rounds, say nothing.
const FRESH: Duration = Duration::from_secs(5);

/// Shortest time between two looks at the host's room.
const LOOK: Duration = Duration::from_millis(100);

/// Interfaces for a policy.
pub struct PolicyMachine {
    /// Memory and balloon.
    pub guest: LiveGuest,
    /// The balloon's target as the client set it.
    pub target: Pages,
    /// The pager, or why it is unavailable.
    pub paging: Result<Arc<Paging>, String>,
    /// A handle for background work on the compactor's thread.
    pub work: BackgroundWork,
}

/// Why [`PolicyWorker::wait`] returned.
enum PolicyWake {
    Stop,
    Round,
    /// The host has too little room for parked memory to come back.
    Short,
}

/// The thread's own state.
pub(super) struct PolicyWorker {
    guest: LiveGuest,
    work: BackgroundWork,
    eviction: Result<Eviction, String>,
    policy: Policy,
    groups: ControlGroups,
    started: Instant,
    next_round: Instant,
    next_look: Instant,
    /// Processor time that the pager had spent before.
    spent_before: Duration,
    shared: Arc<PolicyShared>,
}

impl PolicyWorker {
    pub(super) fn new(machine: PolicyMachine, limits: Limits, shared: Arc<PolicyShared>) -> Self {
        let PolicyMachine { guest, target, paging, work } = machine;
        if let Ok(paging) = &paging {
            let shared = Arc::downgrade(&shared);
            paging.set_on_shortage(Some(Box::new(move || {
                let Some(shared) = shared.upgrade() else { return };
                shared.shortage.store(true, Ordering::Relaxed);
                shared.told.notify_one();
            })));
        }
        let eviction = paging.map(|paging| Eviction::new(paging, work.clone()));
        let spent_before =
            eviction.as_ref().map_or(Duration::ZERO, |eviction| eviction.usage().spent);
        Self {
            guest,
            work,
            eviction,
            policy: Policy::new(limits, target),
            groups: ControlGroups::find(),
            started: Instant::now(),
            next_round: Instant::now() + limits.interval,
            next_look: Instant::now(),
            spent_before,
            shared,
        }
    }

    pub(super) fn run(mut self) {
        // Figures to begin with.
        self.poll_guest();
        loop {
            match self.wait() {
                PolicyWake::Stop => return,
                PolicyWake::Round => {
                    self.next_round = Instant::now() + self.policy.limits().interval;
                    self.round();
                }
                PolicyWake::Short => self.make_room(),
            }
        }
    }

    /// Waits for the next round, or until the host is short, and reads messages.
    fn wait(&mut self) -> PolicyWake {
        let mut orders = lock(&self.shared.orders);
        loop {
            if orders.stop {
                return PolicyWake::Stop;
            }
            let (limits, target) = (orders.limits.take(), orders.client_target.take());
            let is_news = limits.is_some() || target.is_some();
            if let Some(limits) = limits {
                self.policy.set_limits(limits);
            }
            if let Some(target) = target {
                self.policy.hold_balloon(target);
            }
            let now = Instant::now();
            if is_news || now >= self.next_round {
                return PolicyWake::Round;
            }
            let off = self.policy.limits().preset == PolicyPreset::Off;
            let evicts = self.eviction.as_ref().is_ok_and(|eviction| !eviction.is_idle());
            let told = &self.shared.told;
            orders = if off && !evicts && lock(&self.shared.status).limits.is_some() {
                told.wait(orders).unwrap_or_else(PoisonError::into_inner)
            } else {
                if now >= self.next_look || self.shared.shortage.swap(false, Ordering::Relaxed) {
                    self.next_look = now + LOOK;
                    if let Ok(eviction) = &self.eviction
                        && !off
                    {
                        if eviction.should_make_room() {
                            return PolicyWake::Short;
                        }
                        self.next_look = now + LOOK.max(eviction.has_room_for());
                    }
                }
                let left = self.next_round.min(self.next_look).saturating_duration_since(now);
                let waited = told.wait_timeout(orders, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Evicts at once, without waiting for a round.
    fn make_room(&self) {
        let Ok(eviction) = &self.eviction else { return };
        if let Err(error) = eviction.make_room(self.policy.limits().floor) {
            tracing::debug!("no room is made now: {error}");
        }
    }

    fn round(&mut self) {
        let off = self.policy.limits().preset == PolicyPreset::Off;
        if let Ok(eviction) = &self.eviction {
            // Many guests share the host: what is only worth its time must not slow them down.
            let in_a_hurry = off || self.policy.level() == HostLevel::Short;
            eviction.end_if_due(Instant::now(), off, in_a_hurry);
        }
        let Some(now) = self.look() else { return };
        let decisions = self.policy.decide(&now);
        if let Ok(eviction) = &self.eviction {
            eviction.read_ahead(off || self.policy.level() < HostLevel::Short);
        }
        let results: Vec<(Decision, Result<(), String>)> = decisions
            .into_iter()
            .map(|decision| {
                let result = self.carry_out(decision.action);
                (decision, result)
            })
            .collect();
        self.publish(&now, results);
        self.poll_guest();
    }

    /// Asks the guest for the figures of the next round.
    fn poll_guest(&self) {
        self.guest.with_balloon(devices::balloon::Balloon::poll_statistics);
    }

    fn look(&self) -> Option<PressureSnapshot> {
        let residency = match self.guest.ram().residency() {
            Ok(residency) => residency,
            Err(error) => {
                tracing::warn!("the memory policy cannot read the page table: {error}");
                return None;
            }
        };
        let now = self.started.elapsed();
        let fresh = FRESH.max(self.policy.limits().interval * 3);
        let seen = self.guest.with_balloon(|balloon| {
            let use_now = BalloonUse {
                target: balloon.target_pages(),
                given: balloon.ballooned(),
                hints: balloon.current_config().free_page_hinting,
            };
            (
                balloon.is_active().then_some(use_now),
                figures(balloon.statistics(), self.started, fresh),
            )
        });
        let (balloon, guest) = seen.unwrap_or_default();
        let total = self.guest.ram().pages().bytes();
        Some(PressureSnapshot {
            now,
            host: self.groups.narrow(HostFigures::read()),
            memory: MemoryUse { total, resident: residency.resident },
            guest,
            balloon,
            paging: self.eviction.as_ref().ok().map(Eviction::usage),
        })
    }

    fn carry_out(&self, action: Action) -> Result<(), String> {
        match action {
            Action::Discard => {
                let task = self.work.run(Box::new(|guest, _| {
                    release_what_is_free(guest);
                    Box::new(|| ())
                }));
                task.map_err(|error| error.to_string())
            }
            Action::Hint => self.on_balloon(|balloon| balloon.start_hinting(true)),
            Action::SetBalloon(target) => self.set_target(target),
            Action::Evict { blocks, trial } => {
                let eviction = self.eviction.as_ref().map_err(Clone::clone)?;
                eviction.begin(blocks, trial).map_err(|error| error.to_string())
            }
            Action::Repack(blocks) => {
                let eviction = self.eviction.as_ref().map_err(Clone::clone)?;
                eviction.repack(blocks).map_err(|error| error.to_string())
            }
            Action::Unpark => {
                let eviction = self.eviction.as_ref().map_err(Clone::clone)?;
                eviction.unpark().map_err(|error| error.to_string())
            }
        }
    }

    /// Sets the balloon's target, unless a client has set one since the decision.
    fn set_target(&self, target: Pages) -> Result<(), String> {
        // A client's message precedes its change of the target, and waits for this lock.
        let orders = lock(&self.shared.orders);
        if orders.client_target.is_some() {
            return Err("a client set the balloon's target".into());
        }
        self.on_balloon(|balloon| balloon.set_target(target))
    }

    fn on_balloon<E: std::fmt::Display>(
        &self,
        act: impl FnOnce(&mut devices::balloon::Balloon) -> Result<(), E>,
    ) -> Result<(), String> {
        let done = self.guest.with_balloon(act).ok_or("the machine has no balloon")?;
        done.map_err(|error| error.to_string())
    }

    fn publish(&self, now: &PressureSnapshot, results: Vec<(Decision, Result<(), String>)>) {
        let mut status = lock(&self.shared.status);
        let status: &mut PolicyStatus = &mut status;
        status.limits = Some(*self.policy.limits());
        status.balloon_held = self.policy.is_balloon_held();
        status.target = now.balloon.map(|balloon| balloon.target);
        status.host = now.host;
        status.host_reserve = reserve(&now.host, self.policy.limits());
        status.level = self.policy.level();
        status.guest = self.policy.guest();
        status.figures = now.guest;
        status.memory = now.memory;
        status.backing_off = self.policy.backing_off();
        status.age = now.now;
        if let Some(paging) = &now.paging {
            status.absent = paging.absent;
            status.spent = paging.spent.saturating_sub(self.spent_before);
        }
        match &self.eviction {
            Ok(eviction) => {
                status.evictions = eviction.counters();
                status.no_eviction = eviction.stopped();
            }
            Err(why) => status.no_eviction = Some(why.clone()),
        }
        let counters = &mut status.counters;
        counters.rounds += 1;
        counters.guest_hurt += u64::from(self.policy.guest() == GuestState::Hurt);
        for (decision, result) in results {
            match (&result, decision.action) {
                (Err(_), _) => counters.failures += 1,
                (Ok(()), Action::Discard) => counters.discards += 1,
                (Ok(()), Action::Hint) => counters.hints += 1,
                (Ok(()), Action::SetBalloon(to)) => {
                    let raised = now.balloon.is_some_and(|balloon| to > balloon.target);
                    counters.balloon_raised += u64::from(raised);
                    counters.balloon_lowered += u64::from(!raised);
                    status.target = Some(to);
                }
                (Ok(()), Action::Unpark) => counters.unparks += 1,
                (Ok(()), Action::Evict { .. } | Action::Repack(_)) => {}
            }
            status.journal.note(decision, result);
        }
    }
}

/// The guest's figures, if they are complete and not older than `fresh`.
fn figures(told: &Statistics, started: Instant, fresh: Duration) -> Option<GuestFigures> {
    let at = told.updated.filter(|at| at.elapsed() <= fresh)?;
    Some(GuestFigures {
        at: at.saturating_duration_since(started),
        free: Bytes(told.free_memory?),
        available: Bytes(told.available_memory?),
        stalls: told.alloc_stall.unwrap_or(0),
        major_faults: told.major_faults.unwrap_or(0),
        swapped_in: told.swap_in.unwrap_or(0),
        kills: told.oom_kill.unwrap_or(0),
    })
}
