// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Detection of cold blocks by probation, since page tables do not show a guest's accesses under
//! KVM.
//!
//! A few blocks at a time are taken out without being compressed, which costs microseconds. Blocks
//! that the guest accesses during the trial are moved straight back and are hot; the others go to
//! the store. This file contains only the decisions and no memory access, so it is tested as plain
//! arithmetic.
//!
//! Three back-offs bound what is spent on a busy guest: a block that came back, during its trial or
//! soon after it was stored, is tried again after twice as many rounds as before; if most of a
//! round's blocks came back, the next round tries half as many; and of blocks that came back before,
//! a round has only a few, as one request of the guest may need them all and wait for each: more only
//! after a round in which it waited for few pages.

/// Blocks that came back before, in a round after one of them came back again.
const FEW: usize = 1;
/// How many times as long as others such a block is left alone when it has come back again.
const AGAIN: u32 = 4;
/// Pages of such blocks in a round; with no more, the next may have twice as many of them.
const BEARABLE_PAGES: usize = 32;

/// Result of a block's trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialOutcome {
    /// The guest did not access it: it is now stored.
    Stored,
    /// It is stored, but for so many pages, which the guest accessed.
    Partly(usize),
    /// The guest touched it.
    Wanted,
    /// It cannot be evicted: pinned, in small pages, or not compressible.
    Unable,
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
    /// The round in which it was stored, until it is back.
    stored_in: Option<u64>,
    /// It came back when it was tried last.
    returns: bool,
}

impl Trial {
    /// The guest used it. If it came back before, more than a few of its pages are used, and to find that
    /// out again is dear.
    fn came_back(&mut self, longest: u32) {
        if self.returns {
            self.last_pause = self.last_pause.saturating_mul(AGAIN);
        }
        self.set_back(longest);
        self.returns = true;
    }

    /// It came back or cannot be evicted: double its pause.
    fn set_back(&mut self, longest: u32) {
        self.last_pause = self.last_pause.saturating_mul(2).clamp(1, longest.max(1));
        // The next `choose` takes one off.
        self.pause = self.last_pause.saturating_add(1);
    }
}

/// Chooses blocks to try, and learns from the results.
#[derive(Clone, Debug)]
pub struct ColdTracker {
    policy: Probation,
    trials: Vec<Trial>,
    /// Where the next round starts its search.
    cursor: usize,
    /// Blocks to try in the next round.
    width: usize,
    /// Of these, blocks that came back before.
    again: usize,
    /// Rounds begun.
    round: u64,
}

impl ColdTracker {
    /// For `blocks` blocks without history.
    pub fn new(blocks: usize, policy: Probation) -> Self {
        let width = policy.at_once.max(1);
        let trials = vec![Trial::default(); blocks];
        Self { policy, trials, cursor: 0, width, again: FEW, round: 0 }
    }

    /// Blocks that the next round will try at most.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether block `index` came back when it was tried last.
    pub fn came_back(&self, index: usize) -> bool {
        self.trials[index].returns
    }

    /// Begins a round: at most `wanted` of the blocks for which `is_in_place` holds, least recently
    /// considered first. `is_present` is a cheaper check: whether a block is not absent. A present
    /// block that was stored has come back.
    pub fn choose(
        &mut self,
        wanted: usize,
        is_present: impl Fn(usize) -> bool,
        is_in_place: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let most = wanted.min(self.width);
        let count = self.trials.len();
        self.round += 1;
        let longest = self.policy.longest_pause;
        for (block, trial) in self.trials.iter_mut().enumerate() {
            if let Some(round) = trial.stored_in.take_if(|_| is_present(block)) {
                // Absent for a short time only: the eviction was not worth it.
                match self.round - round <= u64::from(longest) {
                    true => trial.came_back(longest),
                    false => *trial = Trial::default(),
                }
            }
            trial.pause = trial.pause.saturating_sub(1);
        }
        let (mut chosen, mut again) = (Vec::new(), 0);
        for step in 0..count {
            if chosen.len() == most {
                break;
            }
            let block = (self.cursor + step) % count;
            let Trial { pause, returns, .. } = self.trials[block];
            if pause == 0 && (!returns || again < self.again) && is_in_place(block) {
                chosen.push(block);
                again += usize::from(returns);
            }
        }
        if let Some(&last) = chosen.last() {
            self.cursor = (last + 1) % count;
        }
        chosen
    }

    /// Ends a round with the result of each block's trial.
    pub fn learn(&mut self, outcomes: impl IntoIterator<Item = (usize, TrialOutcome)>) {
        let (mut wanted, mut tried) = (0, 0);
        let (mut tried_again, mut wanted_again, mut pages_again) = (false, false, 0);
        for (block, outcome) in outcomes {
            let trial = &mut self.trials[block];
            if trial.returns && outcome != TrialOutcome::Unable {
                tried_again = true;
                wanted_again |= outcome == TrialOutcome::Wanted;
            }
            match outcome {
                // The pause is kept: it is doubled if the block comes back soon.
                TrialOutcome::Stored => {
                    trial.stored_in = Some(self.round);
                    trial.returns = false;
                }
                TrialOutcome::Partly(pages) => {
                    trial.stored_in = Some(self.round);
                    pages_again += pages;
                }
                TrialOutcome::Wanted => trial.came_back(self.policy.longest_pause),
                TrialOutcome::Unable => trial.set_back(self.policy.longest_pause),
            }
            tried += usize::from(outcome != TrialOutcome::Unable);
            wanted += usize::from(outcome == TrialOutcome::Wanted);
        }
        if tried == 0 {
            return;
        }
        if tried_again {
            // A guest that has begun to sleep needs none of them.
            let most = self.policy.at_once.max(FEW);
            self.again = match (wanted_again, pages_again) {
                (true, _) => FEW,
                (false, ..=BEARABLE_PAGES) => (self.again * 2).min(most),
                (false, _) => (self.again / 2).max(FEW),
            };
        }
        self.width = if wanted * 2 > tried {
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
    fn a_guest_that_touches_everything_is_tried_less_and_less() {
        let mut tracker = ColdTracker::new(1000, Probation::default());
        let tried: Vec<usize> = (0..100)
            .map(|_| {
                let chosen = tracker.choose(usize::MAX, |_| true, |_| true);
                tracker.learn(chosen.iter().map(|&block| (block, TrialOutcome::Wanted)));
                chosen.len()
            })
            .collect();
        assert_eq!(tried[0], 32);
        assert!(tried[10..].iter().all(|&n| n == 1), "{tried:?}");
    }

    #[test]
    fn a_block_that_comes_back_soon_after_each_eviction_is_evicted_less_and_less() {
        let policy = Probation { at_once: 1, longest_pause: 16 };
        let mut tracker = ColdTracker::new(1, policy);
        let stored: Vec<usize> = (0..200)
            .filter(|_| {
                // The guest has touched it since the round before.
                let chosen = tracker.choose(1, |_| true, |_| true);
                tracker.learn(chosen.iter().map(|&block| (block, TrialOutcome::Stored)));
                !chosen.is_empty()
            })
            .collect();
        assert!(stored.len() <= 200 / 16 + 5, "{stored:?}");
        assert!(stored.windows(2).skip(5).all(|two| two[1] - two[0] >= 16), "{stored:?}");
    }

    #[test]
    fn few_blocks_that_came_back_are_tried_at_once_until_the_guest_sleeps() {
        let mut tracker = ColdTracker::new(32, Probation { at_once: 32, longest_pause: 4 });
        let mut in_place = [true; 32];
        let mut round = |tracker: &mut ColdTracker, outcome| {
            let chosen = tracker.choose(usize::MAX, |at| in_place[at], |at| in_place[at]);
            chosen.iter().for_each(|&at| in_place[at] = outcome == TrialOutcome::Wanted);
            tracker.learn(chosen.iter().map(|&block| (block, outcome)));
            chosen.len()
        };
        assert_eq!(round(&mut tracker, TrialOutcome::Wanted), 32);
        let awake: Vec<usize> =
            (0..40).map(|_| round(&mut tracker, TrialOutcome::Wanted)).collect();
        assert!(awake.iter().all(|&tried| tried <= FEW) && awake.contains(&FEW), "{awake:?}");
        let asleep: Vec<usize> =
            (0..20).map(|_| round(&mut tracker, TrialOutcome::Stored)).collect();
        assert_eq!(asleep.iter().sum::<usize>(), 32, "{asleep:?}");
        assert!(asleep.iter().any(|&tried| tried > 2 * FEW), "{asleep:?}");
    }

    /// A block that leaves in part is tried again once it is back, and is as dear to the guest as others
    /// that came back.
    #[test]
    fn a_block_that_leaves_in_part_has_come_back_before() {
        let mut tracker = ColdTracker::new(8, Probation { at_once: 8, longest_pause: 64 });
        let first = tracker.choose(8, |_| true, |_| true);
        assert!(!tracker.came_back(0));
        tracker.learn(first.into_iter().map(|block| (block, TrialOutcome::Wanted)));
        let mut away = [false; 8];
        for _ in 0..10 {
            let chosen = tracker.choose(8, |at| !away[at], |at| !away[at]);
            assert!(chosen.len() <= FEW && chosen.iter().all(|&at| tracker.came_back(at)));
            chosen.iter().for_each(|&at| away[at] = true);
            let outcome = TrialOutcome::Partly(BEARABLE_PAGES + 1);
            tracker.learn(chosen.into_iter().map(|block| (block, outcome)));
        }
        assert_eq!(away, [true; 8]);
        assert!(tracker.choose(8, |_| false, |_| false).is_empty());
        // One of them is back soon.
        tracker.choose(8, |at| at == 3, |_| false);
        assert!(tracker.came_back(3));
    }

    #[test]
    fn more_blocks_that_came_back_are_tried_while_the_guest_waits_for_few_pages() {
        let mut tracker = ColdTracker::new(100, Probation { at_once: 16, longest_pause: 1 });
        let mut tried = |pages| {
            let again = Trial { returns: true, ..Trial::default() };
            tracker.trials.fill(again);
            let chosen = tracker.choose(16, |_| true, |_| true);
            let count = chosen.len();
            let outcome = TrialOutcome::Partly(pages);
            tracker.learn(chosen.into_iter().map(|block| (block, outcome)));
            count
        };
        assert_eq!([1; 5].map(&mut tried), [1, 2, 4, 8, 16]);
        assert_eq!([40; 5].map(&mut tried), [16, 8, 4, 2, 1]);
    }

    #[test]
    fn blocks_that_cannot_leave_do_not_narrow_the_search() {
        let mut tracker = ColdTracker::new(64, Probation::default());
        let first = tracker.choose(32, |_| true, |_| true);
        tracker.learn(first.into_iter().map(|block| (block, TrialOutcome::Unable)));
        assert_eq!(tracker.width(), 32);
        assert_eq!(tracker.choose(32, |_| true, |_| true), (32..64).collect::<Vec<_>>());
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
                let in_place_now = |block: usize| in_place[block];
                let chosen = tracker.choose(wanted, in_place_now, in_place_now);
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
                let outcome = |block: usize| match hot[block] {
                    true => TrialOutcome::Wanted,
                    false => TrialOutcome::Stored,
                };
                tracker.learn(chosen.into_iter().map(|block| (block, outcome(block))));
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
