// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which blocks are cold: found out by probation, since page tables under KVM do not tell.
//!
//! A few blocks at a time are taken out without being compressed, which costs microseconds. Those
//! that the guest touches within the trial are moved straight back and are hot; the others go to the
//! store. This file only decides; it knows no memory, so it is tested as plain arithmetic.
//!
//! Two back-offs bound what is spent on a busy guest: a block that came back is tried again after
//! twice as many rounds as before, and when most of a round's blocks came back, the next round tries
//! half as many.

use std::time::Duration;

/// What evicting is worth, in processor time against bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionCosts {
    /// To take a block out and compress it.
    pub evict: Duration,
    /// To bring a block back.
    pub fill: Duration,
    /// Host memory that one block away frees, less what it takes compressed.
    pub freed_bytes: u64,
    /// Bytes that must stay free for a second for each microsecond of processor time.
    pub bytes_per_us: u64,
}

impl Default for EvictionCosts {
    /// A third of a block is left; 1.3 ms for both ways pay off if the block stays away for ten seconds.
    fn default() -> Self {
        Self {
            evict: Duration::from_micros(700),
            fill: Duration::from_micros(600),
            freed_bytes: 1400 << 10,
            bytes_per_us: 11_000,
        }
    }
}

impl EvictionCosts {
    /// The shortest time away that pays for a block's way out and back.
    pub fn break_even(&self) -> Duration {
        let us = self.evict.saturating_add(self.fill).as_micros();
        let price = us.saturating_mul(self.bytes_per_us.into()).saturating_mul(1000);
        let ms = price.checked_div(self.freed_bytes.into()).unwrap_or(u128::MAX);
        Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
    }
}

/// How blocks are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probation {
    /// Most blocks on trial at once.
    pub at_once: usize,
    /// Longest pause of a block that came back, in rounds.
    pub longest_pause: u32,
}

impl Default for Probation {
    fn default() -> Self {
        Self { at_once: 32, longest_pause: 64 }
    }
}

/// What is remembered of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    /// Rounds to let pass before the next.
    pause: u32,
    /// How long that was after the last failure.
    last_pause: u32,
}

/// Chooses blocks to try, and learns from what became of them.
#[derive(Clone, Debug)]
pub struct ColdTracker {
    policy: Probation,
    trials: Vec<Trial>,
    /// Where the next round begins to look.
    cursor: usize,
    /// Blocks to try in the next round.
    width: usize,
}

impl ColdTracker {
    /// For `blocks` blocks, of which nothing is known.
    pub fn new(blocks: usize, policy: Probation) -> Self {
        let width = policy.at_once.max(1);
        Self { policy, trials: vec![Trial::default(); blocks], cursor: 0, width }
    }

    /// Begins a round: at most `wanted` of the blocks for which `is_in_place` holds, those first
    /// that were not looked at for longest.
    pub fn choose(&mut self, wanted: usize, is_in_place: impl Fn(usize) -> bool) -> Vec<usize> {
        let most = wanted.min(self.width);
        let count = self.trials.len();
        for trial in &mut self.trials {
            trial.pause = trial.pause.saturating_sub(1);
        }
        let mut chosen = Vec::new();
        for step in 0..count {
            if chosen.len() == most {
                break;
            }
            let block = (self.cursor + step) % count;
            if self.trials[block].pause == 0 && is_in_place(block) {
                chosen.push(block);
            }
        }
        if let Some(&last) = chosen.last() {
            self.cursor = (last + 1) % count;
        }
        chosen
    }

    /// Ends a round: `returned` says of each block on trial whether the guest touched it.
    pub fn learn(&mut self, outcome: impl IntoIterator<Item = (usize, bool)>) {
        let (mut came_back, mut all) = (0, 0);
        for (block, returned) in outcome {
            let trial = &mut self.trials[block];
            all += 1;
            if returned {
                came_back += 1;
                let next = trial.last_pause.saturating_mul(2).max(1);
                trial.last_pause = next.min(self.policy.longest_pause);
                // The next `choose` takes one off.
                trial.pause = trial.last_pause.saturating_add(1);
            } else {
                *trial = Trial::default();
            }
        }
        if all == 0 {
            return;
        }
        self.width = if came_back * 2 > all {
            (self.width / 2).max(1)
        } else {
            (self.width * 2).min(self.policy.at_once.max(1))
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_pays_after_ten_seconds() {
        let break_even = EvictionCosts::default().break_even();
        assert!((9..12).contains(&break_even.as_secs()), "{break_even:?}");
        let worthless = EvictionCosts { freed_bytes: 0, ..EvictionCosts::default() };
        assert_eq!(worthless.break_even(), Duration::from_millis(u64::MAX));
    }

    #[test]
    fn a_guest_that_touches_everything_is_tried_less_and_less() {
        let mut tracker = ColdTracker::new(1000, Probation::default());
        let tried: Vec<usize> = (0..100)
            .map(|_| {
                let chosen = tracker.choose(usize::MAX, |_| true);
                tracker.learn(chosen.iter().map(|&block| (block, true)));
                chosen.len()
            })
            .collect();
        assert_eq!(tried[0], 32);
        assert!(tried[10..].iter().all(|&n| n == 1), "{tried:?}");
    }

    proptest! {
        /// For any touches of the guest: no more blocks than allowed, none twice in a round, none that
        /// is away; a block that is never touched leaves, and one that always is, is tried about as
        /// often as its pauses allow.
        #[test]
        fn cold_blocks_leave_and_hot_ones_are_left_alone(
            hot in prop::collection::vec(any::<bool>(), 1..60),
            at_once in 1usize..8,
            wanted in 1usize..12,
        ) {
            let policy = Probation { at_once, longest_pause: 8 };
            let mut tracker = ColdTracker::new(hot.len(), policy);
            let mut in_place = vec![true; hot.len()];
            let mut tries = vec![0u32; hot.len()];
            let rounds = 40 * hot.len();
            for _ in 0..rounds {
                let chosen = tracker.choose(wanted, |block| in_place[block]);
                prop_assert!(chosen.len() <= at_once.min(wanted));
                let mut unique = chosen.clone();
                unique.sort_unstable();
                unique.dedup();
                prop_assert_eq!(unique.len(), chosen.len());
                for &block in &chosen {
                    prop_assert!(in_place[block]);
                    tries[block] += 1;
                    in_place[block] = hot[block];
                }
                tracker.learn(chosen.into_iter().map(|block| (block, hot[block])));
            }
            for (block, &hot) in hot.iter().enumerate() {
                if hot {
                    // Eight rounds apart, apart from the first few.
                    prop_assert!(tries[block] as usize <= rounds / 8 + 5, "{}", tries[block]);
                } else {
                    prop_assert_eq!((in_place[block], tries[block]), (false, 1));
                }
            }
        }
    }
}
