// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Judges how the host is off, by its free memory and its stalls.

use mm::units::Bytes;

use super::host_level::HostLevel;
use super::limits::Limits;
use crate::host::memory_figures::HostFigures;

/// Rounds for which the host must look better before it is believed.
const SETTLED: u32 = 5;

/// Judges the host, round by round. Its level rises immediately and falls only after the host has
/// been better by a quarter for some rounds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HostJudge {
    level: HostLevel,
    /// Rounds in which the host looked better than its level.
    better: u32,
    calm: u32,
}

impl HostJudge {
    /// The level after the last look.
    pub(super) fn level(&self) -> HostLevel {
        self.level
    }

    /// Rounds for which the host has been comfortable.
    pub(super) fn calm(&self) -> u32 {
        self.calm
    }

    /// Takes a round's figures.
    pub(super) fn look(&mut self, host: &HostFigures, limits: &Limits) {
        let level = judge(host, limits, 100, 1.0);
        // To be believed that it is better off, it must be so by a quarter, and for a while.
        let lenient = judge(host, limits, 125, 0.5);
        if level >= self.level {
            self.level = level;
            self.better = 0;
        } else if lenient < self.level {
            self.better += 1;
            if self.better >= SETTLED {
                self.level = lenient;
                self.better = 0;
            }
        } else {
            self.better = 0;
        }
        self.calm = match self.level {
            HostLevel::Comfortable => self.calm.saturating_add(1),
            _ => 0,
        };
    }
}

/// The reserve of available memory on the host.
pub(super) fn reserve(host: &HostFigures, limits: &Limits) -> Bytes {
    let share = || Bytes(host.total.unwrap_or(0) / 100 * limits.host_reserve_percent);
    limits.host_reserve.unwrap_or_else(share)
}

/// The host's level, with thresholds scaled by a percentage, and stalls counted in full or in part.
fn judge(host: &HostFigures, limits: &Limits, percent: u64, stall_share: f64) -> HostLevel {
    let reserve = reserve(host, limits).0 / 100 * percent;
    let available = host.available.unwrap_or(u64::MAX);
    // A host with plenty of memory stalls too, when it compacts for huge pages, and in control
    // groups with their own limits.
    let counts = available / 4 < reserve || host.available.is_none();
    let stalled = host.some.filter(|_| counts).unwrap_or(0.0);
    let [tight, short] = limits.stall_percent.map(|limit| limit * stall_share);
    if available < reserve || stalled >= short {
        HostLevel::Short
    } else if available / 2 < reserve || stalled >= tight {
        HostLevel::Tight
    } else {
        HostLevel::Comfortable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PolicyConfig, PolicyPreset};

    fn host(available_mib: u64, some: f64) -> HostFigures {
        HostFigures { available: Some(available_mib << 20), some: Some(some), ..Default::default() }
    }

    fn limits() -> Limits {
        let preset = PolicyPreset::Gentle;
        let config = PolicyConfig { preset, host_reserve_mib: Some(100), ..Default::default() };
        Limits::new(&config, Bytes(256 << 20))
    }

    #[test]
    fn the_level_rises_at_once_and_falls_late() {
        let (limits, mut judge) = (limits(), HostJudge::default());
        let mut levels = |available, rounds| {
            (0..rounds).for_each(|_| judge.look(&host(available, 0.0), &limits));
            judge.level()
        };
        assert_eq!(levels(300, 1), HostLevel::Comfortable);
        assert_eq!(levels(199, 1), HostLevel::Tight);
        assert_eq!(levels(99, 1), HostLevel::Short);
        // Better, but not by a quarter.
        assert_eq!(levels(124, 100), HostLevel::Short);
        assert_eq!(levels(126, 4), HostLevel::Short);
        assert_eq!(levels(126, 1), HostLevel::Tight);
        assert_eq!(levels(300, 5), HostLevel::Comfortable);
    }

    #[test]
    fn stalls_count_where_the_kernel_tells_them() {
        let (limits, mut judge) = (limits(), HostJudge::default());
        judge.look(&host(1000, 20.0), &limits);
        assert_eq!(judge.level(), HostLevel::Comfortable, "ten times the reserve");
        judge.look(&host(390, 20.0), &limits);
        assert_eq!(judge.level(), HostLevel::Short);
        let silent = HostFigures { some: None, ..host(1000, 0.0) };
        (0..SETTLED).for_each(|_| judge.look(&silent, &limits));
        assert_eq!((judge.level(), judge.calm()), (HostLevel::Comfortable, 1));
        judge.look(&HostFigures::default(), &limits);
        assert_eq!(judge.level(), HostLevel::Comfortable, "a host that says nothing");
    }
}
