// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a parked guest is awake. A sleeping one accesses a page now and then, for its timers; one
//! that works accesses page after page, and whole blocks serve it better.

use std::time::{Duration, Instant};

/// Accesses of a sleeping guest come at most this often, for long.
const INTERVAL: Duration = Duration::from_millis(50);
/// Accesses that may come at once.
const BURST: u32 = 256;
/// Intervals without an access after which a guest that was awake sleeps.
const QUIET: u32 = 20;

/// The recent rate of accesses to absent memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wakefulness {
    /// When all accesses so far would have come, at one an interval.
    paced: Option<Instant>,
}

impl Wakefulness {
    /// Notes an access; whether the guest is awake.
    pub(super) fn accessed(&mut self, now: Instant) -> bool {
        let paced = self.paced.map_or(now, |paced| paced.max(now)) + INTERVAL;
        self.paced = Some(paced.min(now + INTERVAL * (BURST + QUIET)));
        paced - now > INTERVAL * BURST
    }

    /// An access was answered, which took `time`: that is no quiet, as the guest waited.
    pub(super) fn answered(&mut self, time: Duration) {
        self.paced = self.paced.map(|paced| paced + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_accesses_or_slow_ones_come_from_a_sleeping_guest() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        for _ in 0..BURST {
            assert!(!guest.accessed(start));
        }
        let mut guest = Wakefulness::default();
        for turn in 0..1000 {
            assert!(!guest.accessed(start + INTERVAL * turn));
        }
    }

    #[test]
    fn many_accesses_wake_it_until_it_was_quiet() {
        let start = Instant::now();
        let mut guest = Wakefulness::default();
        let awake = (0..1000).filter(|_| guest.accessed(start)).count();
        assert_eq!(awake, 1000 - BURST as usize);
        assert!(guest.accessed(start + INTERVAL * (QUIET - 1)));
        assert!(!guest.accessed(start + INTERVAL * 3 * QUIET));
    }

    /// Blocks may take longer to come back than a sleeping guest's pause is.
    #[test]
    fn slow_answers_are_no_pauses() {
        let mut now = Instant::now();
        let mut guest = Wakefulness::default();
        for access in 0..1000 {
            assert_eq!(guest.accessed(now), access >= BURST);
            now += INTERVAL * 2;
            guest.answered(INTERVAL * 2);
        }
    }
}
