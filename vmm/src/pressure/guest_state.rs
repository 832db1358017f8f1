// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's state by its own figures.

use mm::units::{Bytes, SaturatingInto};

use super::snapshot::GuestFigures;

/// How the guest is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestState {
    /// It has not said.
    #[default]
    Unknown,
    /// It has memory to spare.
    Easy,
    /// It has what it needs, with nothing to spare.
    Tense,
    /// It lacks memory.
    Hurt,
}

impl GuestState {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Easy => "easy",
            Self::Tense => "tense",
            Self::Hurt => "hurt",
        }
    }
}

/// Judges the guest, each time that it sends new figures.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GuestJudge {
    state: GuestState,
    /// The last figures.
    told: Option<GuestFigures>,
}

impl GuestJudge {
    /// The state after the last look.
    pub(super) fn state(&self) -> GuestState {
        self.state
    }

    /// Judges the guest by its figures; returns the reason if it is short of memory.
    pub(super) fn look(&mut self, told: Option<GuestFigures>, reserve: Bytes) -> Option<String> {
        let Some(told) = told else {
            self.state = GuestState::Unknown;
            return None;
        };
        let before = self.told.unwrap_or(told);
        if before.at != told.at || self.told.is_none() {
            self.told = Some(told);
        } else if self.state != GuestState::Unknown {
            // No new figures: the state is unchanged.
            return None;
        }
        let ms = told.at.saturating_sub(before.at).as_millis().max(1);
        let rate = |count: fn(&GuestFigures) -> u64| {
            let more = u128::from(count(&told).saturating_sub(count(&before)));
            (more * 1000 / ms).saturating_u64()
        };
        let (stalls, faults) = (rate(|told| told.stalls), rate(|told| told.major_faults));
        let swapped = rate(|told| told.swapped_in);
        let (available, reserve) = (told.available.0, reserve.0);
        let complaint = if told.kills > before.kills {
            Some("the guest's OOM killer killed a process".to_owned())
        } else if stalls >= 5 {
            Some(format!("{stalls} guest allocations stalled in one second"))
        } else if swapped >= 1 << 20 {
            Some(format!("the guest swapped in {} MiB in one second", swapped >> 20))
        } else if faults >= 100 {
            Some(format!("the guest had {faults} major page faults in one second"))
        } else if available < reserve / 2 {
            Some(format!(
                "the guest has {} available, less than half its reserve of {}",
                mib(available),
                mib(reserve)
            ))
        } else {
            None
        };
        self.state = if complaint.is_some() {
            GuestState::Hurt
        } else if stalls > 0 || faults >= 20 || available < reserve {
            GuestState::Tense
        } else {
            GuestState::Easy
        };
        complaint
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RESERVE: Bytes = Bytes(32 << 20);

    fn figures(s: u64, available_mib: u64) -> GuestFigures {
        let available = Bytes(available_mib << 20);
        GuestFigures { at: Duration::from_secs(s), available, ..GuestFigures::default() }
    }

    #[test]
    fn a_guest_that_waits_for_memory_complains() {
        let mut judge = GuestJudge::default();
        assert_eq!(judge.look(Some(figures(1, 100)), RESERVE), None);
        assert_eq!(judge.state(), GuestState::Easy);
        let stalled = GuestFigures { stalls: 20, ..figures(3, 100) };
        let complaint = judge.look(Some(stalled), RESERVE).unwrap();
        assert!(complaint.starts_with("10 guest allocations"), "{complaint}");
        assert_eq!(judge.state(), GuestState::Hurt);
        // The same figures again are not a new complaint.
        assert_eq!(judge.look(Some(stalled), RESERVE), None);
        assert_eq!(judge.state(), GuestState::Hurt);
        assert_eq!(
            judge.look(Some(GuestFigures { at: figures(4, 0).at, ..stalled }), RESERVE),
            None
        );
        assert_eq!(judge.state(), GuestState::Easy);
    }

    #[test]
    fn every_kind_of_want_is_a_complaint() {
        let base = figures(1, 100);
        let at = Duration::from_secs(2);
        for worse in [
            GuestFigures { kills: 1, ..base },
            GuestFigures { swapped_in: 4 << 20, ..base },
            GuestFigures { major_faults: 500, ..base },
            GuestFigures { available: Bytes(15 << 20), ..base },
        ] {
            let mut judge = GuestJudge::default();
            judge.look(Some(base), RESERVE);
            assert!(judge.look(Some(GuestFigures { at, ..worse }), RESERVE).is_some(), "{worse:?}");
        }
        let mut judge = GuestJudge::default();
        judge.look(Some(figures(1, 20)), RESERVE);
        assert_eq!(judge.state(), GuestState::Tense);
        judge.look(None, RESERVE);
        assert_eq!(judge.state(), GuestState::Unknown);
    }
}
