// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When to run a background pass: a target, the interval of checks, and triggers.

use std::time::{Duration, Instant};

use mm::blocks::map::Totals;
use mm::blocks::policy::{Goals, PassLimits};
use mm::units::Bytes;

use super::job::PassJob;
use super::pressure::Pressure;

/// When passes run unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSchedule {
    /// A pass is worth it while less than this share of resident memory is in huge pages, in per
    /// cent.
    pub huge_percent: u8,
    /// Time between two looks.
    pub every: Duration,
    /// Run only while the guest's memory has been still since the look before: its resident size
    /// has changed by less than a hundredth.
    pub only_idle: bool,
    /// Check immediately when host tasks stalled on memory for this long within two seconds.
    pub stall: Option<Duration>,
    /// Limits of each pass.
    pub limits: PassLimits,
}

/// A schedule at work.
#[derive(Debug)]
pub(super) struct Scheduler {
    policy: PassSchedule,
    pressure: Option<Pressure>,
    next_look: Instant,
    /// The GPU has requested a check since the last one; and when it will run.
    gpu_asks: Option<Instant>,
    /// The host was short of memory when last looked at.
    pressed: bool,
    last_resident: Option<Bytes>,
    /// Checks to skip, and how many to skip after the next useless pass.
    skip: u32,
    back_off: u32,
    last_huge: Option<Bytes>,
}

/// Delay between the GPU's request and the check, as buffers often arrive in groups.
const GATHER_REQUESTS: Duration = Duration::from_millis(20);
/// Purpose of a check of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapCheck {
    /// All that the policy is about.
    AtEverything,
    /// New GPU buffers only: does not wait for an idle guest and does not involve the guest.
    AtTheGpu,
}

/// Maximum number of checks to skip after useless passes.
const LONGEST_BACK_OFF: u32 = 64;

impl Scheduler {
    pub(super) fn new(policy: PassSchedule, pressure: Option<Pressure>, now: Instant) -> Self {
        Self {
            policy,
            pressure,
            next_look: now + policy.every,
            gpu_asks: None,
            pressed: false,
            last_resident: None,
            skip: 0,
            back_off: 0,
            last_huge: None,
        }
    }

    /// The GPU has a new buffer that could do with huge pages.
    pub(super) fn gpu_asks(&mut self, now: Instant) {
        self.gpu_asks.get_or_insert(now + GATHER_REQUESTS);
    }

    /// How long nothing is due.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let next = self.gpu_asks.map_or(self.next_look, |at| at.min(self.next_look));
        next.saturating_duration_since(now)
    }

    /// Whether it is time to look at the map, and why.
    pub(super) fn wants_look(&mut self, now: Instant) -> Option<MapCheck> {
        self.pressed = self.pressure.as_ref().is_some_and(Pressure::fired);
        if self.pressed || now >= self.next_look {
            self.next_look = now + self.policy.every;
            self.gpu_asks = None;
            return Some(MapCheck::AtEverything);
        }
        self.gpu_asks.take_if(|at| *at <= now).map(|_| MapCheck::AtTheGpu)
    }

    /// The job for a map with these totals that was read for the GPU.
    pub(super) fn serve_gpu(&self, totals: &Totals) -> Option<PassJob> {
        let asked = totals.gpu_in_pieces > Bytes(0);
        asked.then(|| PassJob { goals: Goals::backing_gpu(), limits: self.policy.limits })
    }

    /// The job for a map with these totals.
    pub(super) fn decide(&mut self, totals: &Totals) -> Option<PassJob> {
        let before = self.last_resident.replace(totals.resident);
        let moved = before.map_or(u64::MAX, |b| b.0.abs_diff(totals.resident.0));
        let idle = moved.saturating_mul(100) < totals.resident.0.max(1);
        // A device uses a whole block: it needs contiguous memory now.
        let asked = totals.gpu_in_pieces > Bytes(0);
        if self.policy.only_idle && !idle && !self.pressed && !asked {
            return None;
        }
        if !self.pressed && self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let enough = u128::from(totals.huge.0) * 100
            >= u128::from(totals.resident.0) * u128::from(self.policy.huge_percent);
        if enough && !asked && totals.wasted == Bytes(0) {
            self.back_off = 0;
            return None;
        }
        // A pass that changed nothing is not repeated immediately.
        let in_vain = self.last_huge.replace(totals.huge) == Some(totals.huge);
        self.back_off = if in_vain { (self.back_off * 2).clamp(1, LONGEST_BACK_OFF) } else { 0 };
        self.skip = self.back_off;
        let mut goals = Goals::all(true);
        if self.pressed {
            // Filling blocks up is no help to a host that is short of memory.
            goals.collapse_from = None;
            goals.back_gpu = false;
        }
        Some(PassJob { goals, limits: self.policy.limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy() -> PassSchedule {
        PassSchedule {
            huge_percent: 90,
            every: Duration::from_secs(10),
            only_idle: true,
            stall: None,
            limits: PassLimits::UNLIMITED,
        }
    }

    fn totals(resident: u64, huge: u64) -> Totals {
        Totals { resident: Bytes(resident * MIB), huge: Bytes(huge * MIB), ..Totals::default() }
    }

    #[test]
    fn looks_at_the_set_interval() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(policy(), None, start);
        let mut at = |s| scheduler.wants_look(start + Duration::from_secs(s));
        assert_eq!([at(9), at(10), at(19)], [None, Some(MapCheck::AtEverything), None]);
    }

    #[test]
    fn serves_requests_of_the_gpu_together() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(policy(), None, start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(scheduler.wait(start), policy().every);
        scheduler.gpu_asks(at(100));
        scheduler.gpu_asks(at(110));
        assert_eq!(scheduler.wait(at(110)), Duration::from_millis(10));
        assert_eq!(scheduler.wants_look(at(119)), None);
        assert_eq!(scheduler.wants_look(at(120)), Some(MapCheck::AtTheGpu));
        assert_eq!(scheduler.wants_look(at(130)), None);
        let asks = Totals { gpu_in_pieces: Bytes(2 * MIB), ..totals(1000, 100) };
        assert_eq!(scheduler.serve_gpu(&asks).map(|job| job.goals), Some(Goals::backing_gpu()));
        assert!(scheduler.serve_gpu(&totals(1000, 100)).is_none());
    }

    #[test]
    fn runs_for_an_idle_guest_only() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(policy(), None, now);
        assert!(scheduler.decide(&totals(1000, 100)).is_none(), "nothing to compare with yet");
        assert!(scheduler.decide(&totals(1100, 100)).is_none(), "it grows");
        assert!(scheduler.decide(&totals(1101, 100)).is_some());
    }

    #[test]
    fn leaves_a_guest_alone_that_is_huge_enough() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(policy(), None, now);
        scheduler.decide(&totals(1000, 900));
        assert!(scheduler.decide(&totals(1000, 900)).is_none());
        let wasted = Totals { wasted: Bytes(MIB), ..totals(1000, 900) };
        assert!(scheduler.decide(&wasted).is_some());
    }

    #[test]
    fn serves_a_gpu_that_uses_whole_blocks_at_once() {
        let mut scheduler = Scheduler::new(policy(), None, Instant::now());
        let asks = Totals { gpu_in_pieces: Bytes(2 * MIB), ..totals(1000, 950) };
        assert!(scheduler.decide(&asks).is_some(), "not idle, and huge enough");
        assert!(scheduler.decide(&totals(1000, 950)).is_none());
    }

    #[test]
    fn passes_that_change_nothing_become_rare() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(policy(), None, now);
        let runs = (0..100).filter(|_| scheduler.decide(&totals(1000, 100)).is_some()).count();
        assert!((3..12).contains(&runs), "{runs} of 100 looks led to a pass");
    }
}
