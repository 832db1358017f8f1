// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decisions: a pure function of the current snapshot and the policy's state.
//!
//! ```text
//!              guest hurts                    host short, tight, or above the ceiling
//!  give back ◀───────────── each round ─────────────▶ discard · hint · balloon · evict
//!                               │
//!                               └── host comfortable for long: give back slowly
//! ```
//!
//! Memory is reclaimed in the order of its cost to the guest: ballooned pages, free pages, page
//! cache, and last cold memory in use. Three rules prevent oscillation: the host's level falls only
//! well beyond the point where it rose; after the guest was short of memory, or blocks came back,
//! that kind of reclaim pauses for some rounds, twice as many each time; and memory is returned
//! only if the host stays comfortable with it.
//!
//! `cold.rs` has the last of these: trials of cold memory in use, and recompression.

mod cold;

use mm::units::{BLOCK_SIZE, Bytes, Pages};

use crate::config::PolicyPreset;
use crate::pressure::back_off::BackOff;
use crate::pressure::eviction_budget::EvictionBudget;
use crate::pressure::guest_state::{GuestJudge, GuestState};
use crate::pressure::host_judge::{HostJudge, reserve};
use crate::pressure::host_level::HostLevel;
use crate::pressure::limits::Limits;
use crate::pressure::snapshot::{Action, BalloonUse, Decision, PressureSnapshot};

/// Comfortable rounds of the host after which memory is returned.
const CALM: u32 = 30;
/// Rounds between two requests for hints, and between two searches for resident balloon pages.
const SELDOM: u32 = 30;
/// Blocks per second that the guest may access without slowing eviction.
const TOUCHES: u64 = 2;
/// Blocks accessed per second from which a comfortable host brings everything back.
const AWAKE: u64 = 8;
/// Amount of resident ballooned memory from which a scan is worthwhile.
const WORTH_DISCARDING: Bytes = Bytes(4 << 20);
/// Free memory of the guest worth asking for.
const WORTH_HINTING: Bytes = Bytes(16 << 20);
/// A balloon is behind its target if more than this is missing.
const LAG: Pages = Pages(256);

/// The part of a policy that decides.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    limits: Limits,
    /// The client's own target: the balloon never has less.
    base: Pages,
    /// The client has set a target since the policy: the balloon is left alone.
    held: bool,
    host: HostJudge,
    guest: GuestJudge,
    taking: BackOff,
    evicting: BackOff,
    budget: EvictionBudget,
    /// The last that moved memory was a trial: it is recompression's turn.
    tried: bool,
    since_hint: u32,
    since_discard: u32,
}

impl Policy {
    /// A policy that has seen nothing yet. `base` is the balloon's target as the client set it.
    pub(super) fn new(limits: Limits, base: Pages) -> Self {
        Self {
            limits,
            base,
            held: false,
            host: HostJudge::default(),
            guest: GuestJudge::default(),
            taking: BackOff::default(),
            evicting: BackOff::default(),
            budget: EvictionBudget::default(),
            tried: false,
            since_hint: SELDOM,
            since_discard: SELDOM,
        }
    }

    /// Sets new limits, and takes over the balloon's target from a client.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.held = false;
    }

    /// A client has set the balloon's target: it is left alone until there are new limits.
    pub(super) fn hold_balloon(&mut self, target: Pages) {
        self.base = target;
        self.held = true;
    }

    /// Whether a client holds the balloon.
    pub(super) fn is_balloon_held(&self) -> bool {
        self.held
    }

    /// The limits.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How the host was off in the last round.
    pub(super) fn level(&self) -> HostLevel {
        self.host.level()
    }

    /// The guest's state by its last report.
    pub(super) fn guest(&self) -> GuestState {
        self.guest.state()
    }

    /// Rounds without inflation, and without eviction, after it did harm.
    pub(super) fn backing_off(&self) -> [u32; 2] {
        [self.taking.left(), self.evicting.left()]
    }

    /// Actions for this round, in order.
    pub(super) fn decide(&mut self, now: &PressureSnapshot) -> Vec<Decision> {
        let mut decisions = Vec::new();
        if self.limits.preset == PolicyPreset::Off {
            self.restore(now, &mut decisions);
            return decisions;
        }
        self.host.look(&now.host, &self.limits);
        self.taking.round();
        let complaint = self.guest.look(now.guest, self.limits.guest_reserve);
        self.evicting.round();
        if let Some(paging) = &now.paging {
            self.budget.look(paging, now.now, &self.limits);
            if self.budget.touches() > TOUCHES {
                self.evicting.trip();
            }
        }
        self.since_hint = self.since_hint.saturating_add(1);
        self.since_discard = self.since_discard.saturating_add(1);
        if let Some(why) = complaint {
            self.taking.trip();
            self.give_back(now, &why, &mut decisions);
        } else if self.lift_floor(now, &mut decisions) {
            // Nothing is reclaimed in the same round.
        } else if let Some((need, why)) = self.need(now) {
            self.take(now, need, &why, &mut decisions);
        } else {
            self.relax(now, &mut decisions);
        }
        self.evict_or_repack(now, &mut decisions);
        decisions
    }

    /// The balloon, if it is the policy's.
    fn balloon(&self, now: &PressureSnapshot) -> Option<BalloonUse> {
        now.balloon.filter(|_| !self.held)
    }

    /// Most that the balloon may have.
    fn most(&self, now: &PressureSnapshot) -> Pages {
        let most = now.memory.total.saturating_sub(self.limits.floor).as_pages();
        most.max(self.base)
    }

    /// Restores the client's balloon target.
    fn restore(&self, now: &PressureSnapshot, decisions: &mut Vec<Decision>) {
        if let Some(balloon) = self.balloon(now)
            && balloon.target != self.base
        {
            let reason = "the policy is off: the client sets the target again".to_owned();
            decisions.push(Decision { action: Action::SetBalloon(self.base), reason });
        }
    }

    /// Lowers a target that the floor forbids.
    fn lift_floor(&self, now: &PressureSnapshot, decisions: &mut Vec<Decision>) -> bool {
        let most = self.most(now);
        let above = self.balloon(now).is_some_and(|balloon| balloon.target > most);
        if above {
            let reason = format!("the guest is at its floor of {}", mib(self.limits.floor.0));
            decisions.push(Decision { action: Action::SetBalloon(most), reason });
        }
        above
    }

    /// Deflates the balloon immediately.
    fn give_back(&self, now: &PressureSnapshot, why: &str, decisions: &mut Vec<Decision>) {
        let Some(balloon) = self.balloon(now) else { return };
        let short = now
            .guest
            .map_or(0, |told| (self.limits.guest_reserve.0 * 2).saturating_sub(told.available.0));
        let back = Bytes(short.max(self.limits.step.0 * 2)).as_pages();
        let target = Pages(balloon.target.0.saturating_sub(back.0)).max(self.base);
        let target = target.min(self.most(now));
        if target < balloon.target {
            let decision = Decision { action: Action::SetBalloon(target), reason: why.to_owned() };
            decisions.push(decision);
        }
    }

    /// How much to reclaim in this round, and why.
    fn need(&self, now: &PressureSnapshot) -> Option<(Bytes, String)> {
        let (resident, step) = (now.memory.resident.0, self.limits.step.0);
        let spare = resident.saturating_sub(self.limits.floor.0);
        let over = self.limits.ceiling.map_or(0, |ceiling| resident.saturating_sub(ceiling.0));
        let (wanted, why) = if self.level() > HostLevel::Comfortable {
            let reserve = reserve(&now.host, &self.limits).0;
            let available = now.host.available.unwrap_or(u64::MAX);
            let deficit = reserve.saturating_mul(2).saturating_sub(available);
            let level = self.level().name();
            let why = match now.host.some {
                Some(some) if deficit == 0 && some > 0.0 => format!(
                    "the host is {level}: tasks stalled on memory for {some} % of the last ten \
                     seconds"
                ),
                _ if deficit == 0 => format!(
                    "the host has been {level} lately: {} available, reserve {}",
                    mib(available),
                    mib(reserve)
                ),
                _ => format!(
                    "the host is {level}: {} available, reserve {}",
                    mib(available),
                    mib(reserve)
                ),
            };
            // Stalls alone do not say how much is missing.
            (if deficit == 0 { step } else { deficit }, why)
        } else if over > 0 {
            let ceiling = self.limits.ceiling.unwrap_or_default().0;
            (over, format!("{} resident, ceiling {}", mib(resident), mib(ceiling)))
        } else {
            return None;
        };
        let need = wanted.max(BLOCK_SIZE).min(step).min(spare);
        (need > 0).then_some((Bytes(need), why))
    }

    /// Reclaims `need` in the order of its cost to the guest, up to the balloon.
    fn take(
        &mut self,
        now: &PressureSnapshot,
        need: Bytes,
        why: &str,
        decisions: &mut Vec<Decision>,
    ) {
        let mut need = need.0;
        let memory = now.memory;
        let absent = now.paging.map_or(0, |paging| paging.absent.0);
        let given = now.balloon.map_or(0, |balloon| balloon.given.bytes().0);
        let in_vain = (memory.resident.0 + given + absent).saturating_sub(memory.total.0);
        if in_vain >= WORTH_DISCARDING.0 && self.since_discard >= SELDOM {
            self.since_discard = 0;
            need = need.saturating_sub(in_vain);
            let reason = format!("{why}; {} of the balloon are resident", mib(in_vain));
            decisions.push(Decision { action: Action::Discard, reason });
        }
        let (Some(balloon), Some(told)) = (self.balloon(now), now.guest) else { return };
        // Used memory is either resident or parked; the rest of resident memory is free.
        let used = memory.total.0.saturating_sub(given + told.free.0);
        let free = (memory.resident.0 + absent).saturating_sub(used).min(told.free.0);
        if balloon.hints && free >= WORTH_HINTING.0 && self.since_hint >= SELDOM {
            self.since_hint = 0;
            need = need.saturating_sub(free);
            let reason = format!("{why}; about {} of free memory are resident", mib(free));
            decisions.push(Decision { action: Action::Hint, reason });
        }
        if need == 0 || self.taking.holds() || self.guest() != GuestState::Easy {
            return;
        }
        let behind = Pages(balloon.target.0.saturating_sub(balloon.given.0));
        if behind > LAG {
            return;
        }
        // A balloon of free memory that the host has already costs the guest, and gains nothing.
        let cache = told.available.0.saturating_sub(told.free.0);
        if free + cache < self.limits.step.0 / 2 {
            return;
        }
        let keep = self.limits.guest_reserve.0;
        let room = told.available.0.saturating_sub(keep + behind.bytes().0);
        let more = Bytes(need.min(room)).as_pages();
        let target = Pages(balloon.target.0 + more.0).max(self.base).min(self.most(now));
        if target > balloon.target {
            let from = match told.free.0 > keep + more.bytes().0 {
                true => format!("the guest has {} free", mib(told.free.0)),
                false => format!("the guest can spare {} of page cache", mib(room)),
            };
            let reason = format!("{why}; {from}");
            decisions.push(Decision { action: Action::SetBalloon(target), reason });
        }
    }

    /// Slowly returns memory that the host no longer needs.
    fn relax(&self, now: &PressureSnapshot, decisions: &mut Vec<Decision>) {
        if self.host.calm() < CALM {
            return;
        }
        let step = self.limits.step.0;
        let spare = now.host.available.map(|available| {
            available.saturating_sub(reserve(&now.host, &self.limits).0.saturating_mul(5) / 2)
        });
        let for_a_step = spare.is_none_or(|spare| spare >= step * 2);
        let below_ceiling = self
            .limits
            .ceiling
            .is_none_or(|ceiling| now.memory.resident.0.saturating_add(step) <= ceiling.0);
        let wants = match (self.limits.preset, now.guest) {
            (PolicyPreset::Dense, Some(told)) => told.available.0 < self.limits.guest_reserve.0 * 2,
            (PolicyPreset::Dense, None) => false,
            _ => true,
        };
        if let Some(balloon) = self.balloon(now).filter(|_| for_a_step && below_ceiling && wants) {
            let back = Bytes(step).as_pages().0;
            let target = Pages(balloon.target.0.saturating_sub(back)).max(self.base);
            if target < balloon.target {
                let reason = "the host has had enough memory for a while".to_owned();
                decisions.push(Decision { action: Action::SetBalloon(target), reason });
                return;
            }
        }
        let Some(paging) = now.paging.filter(|paging| !paging.busy) else { return };
        let fits = spare.is_none_or(|spare| spare > paging.absent.0);
        let keeps_below = self
            .limits
            .ceiling
            .is_none_or(|ceiling| now.memory.resident.0 + paging.absent.0 <= ceiling.0);
        if paging.absent.0 > 0 && self.budget.touches() >= AWAKE && fits && keeps_below {
            let reason = format!(
                "the guest is active: it touched {} parked blocks in one second",
                self.budget.touches()
            );
            decisions.push(Decision { action: Action::Unpark, reason });
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests;
