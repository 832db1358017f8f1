// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The CPU-time budget of eviction, and the rate at which evicted blocks come back.

use std::time::Duration;

use mm::units::SaturatingInto;

use super::limits::Limits;
use super::snapshot::PagingUse;

/// Time within which a debt is paid off at the latest.
const MEMORY: Duration = Duration::from_secs(60);

/// An account that earns a share of the time that passes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EvictionBudget {
    /// Blocks touched, time spent, and when that was.
    seen: Option<(u64, Duration, Duration)>,
    /// Blocks accessed per second in the last round.
    touches: u64,
    credit_us: i64,
}

impl EvictionBudget {
    /// Blocks that the guest accessed per second in the last round.
    pub(super) fn touches(&self) -> u64 {
        self.touches
    }

    /// Blocks that can be paid for in `wait` from now: trials are paid for when they end. Otherwise
    /// a long trial of the few blocks that could be paid for at once would keep others waiting.
    pub(super) fn blocks(&self, paging: &PagingUse, wait: Duration, limits: &Limits) -> u64 {
        let cost = paging.block_cost().as_micros().max(1);
        let credit = self.credit_us.saturating_add(earned(wait, limits));
        let blocks = u128::from(credit.saturating_u64()) / cost;
        blocks.saturating_u64()
    }

    /// Records the counters of a round at `now`.
    pub(super) fn look(&mut self, paging: &PagingUse, now: Duration, limits: &Limits) {
        let first = (paging.touched_blocks, paging.spent, now.saturating_sub(limits.interval));
        let (touched, spent, at) = self.seen.unwrap_or(first);
        self.seen = Some((paging.touched_blocks, paging.spent, now));
        let passed = now.saturating_sub(at).max(Duration::from_millis(1));
        let blocks = paging.touched_blocks.saturating_sub(touched);
        let per_second = u128::from(blocks) * 1000 / passed.as_millis().max(1);
        self.touches = per_second.saturating_u64();
        let used = micros(paging.spent.saturating_sub(spent));
        // Savings are limited to one large trial; a debt is paid off within a minute.
        let whole = limits.at_once.saturating_i64();
        let most = micros(paging.block_cost()).saturating_mul(whole);
        let least = -earned(MEMORY, limits);
        let earned = earned(passed, limits);
        self.credit_us = self.credit_us.saturating_add(earned).saturating_sub(used);
        self.credit_us = self.credit_us.clamp(least, most.max(0));
    }
}

fn micros(time: Duration) -> i64 {
    time.as_micros().saturating_i64()
}

/// The share of `time` that may be spent, in microseconds.
fn earned(time: Duration, limits: &Limits) -> i64 {
    micros(time).saturating_mul(limits.cpu_percent.saturating_i64()) / 100
}

#[cfg(test)]
mod tests {
    use mm::paging::EvictionCosts;
    use mm::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{PolicyConfig, PolicyPreset};

    fn paging(touched_blocks: u64, spent: Duration) -> PagingUse {
        let costs = EvictionCosts::default();
        let pool = [Bytes(0), Bytes(1 << 30)];
        PagingUse {
            absent: Bytes(0),
            touched_blocks,
            spent,
            costs,
            pool,
            busy: false,
            repackable: 0,
        }
    }

    proptest! {
        /// For any requests, the time spent never exceeds the earned share plus the savings for one
        /// trial.
        #[test]
        fn spends_its_share_and_no_more(percent in 1u8..50, wishes in prop::collection::vec(0u64..64, 300)) {
            let preset = PolicyPreset::Dense;
            let config = PolicyConfig { preset, cpu_percent: Some(percent), ..Default::default() };
            let limits = Limits::new(&config, Bytes(256 << 20));
            let mut budget = EvictionBudget::default();
            let mut spent = Duration::ZERO;
            let rounds = wishes.len() as u32;
            let cost = paging(0, spent).block_cost();
            for (round, wish) in wishes.into_iter().enumerate() {
                let now = Duration::from_secs(round as u64 + 1);
                budget.look(&paging(0, spent), now, &limits);
                let most = budget.blocks(&paging(0, spent), Duration::ZERO, &limits);
                let blocks = wish.min(most).min(limits.at_once as u64);
                spent += cost * u32::try_from(blocks).unwrap();
            }
            let earned = Duration::from_secs(rounds.into()) * percent.into() / 100;
            let saved = cost * u32::try_from(limits.at_once).unwrap();
            prop_assert!(spent <= earned + saved, "{spent:?} of {earned:?}");
        }
    }

    /// Blocks that cost half a second, at a tenth of a CPU: one in five seconds.
    #[test]
    fn a_trial_is_as_large_as_can_be_paid_for_at_its_end() {
        let config = PolicyConfig { preset: PolicyPreset::Dense, ..Default::default() };
        let limits = Limits::new(&config, Bytes(256 << 20));
        let half = Duration::from_millis(250);
        let costs = EvictionCosts { evict: half, fill: half, ..EvictionCosts::default() };
        let (mut budget, trial) = (EvictionBudget::default(), Duration::from_secs(30));
        let (mut spent, mut stored) = (Duration::ZERO, 0);
        for round in 1..=20 {
            let seen = PagingUse { costs, ..paging(0, spent) };
            budget.look(&seen, trial * round, &limits);
            let blocks = budget.blocks(&seen, trial, &limits).min(limits.at_once as u64);
            assert!(blocks >= 3, "{blocks} in round {round}");
            spent += seen.block_cost() * u32::try_from(blocks).unwrap();
            stored += blocks;
        }
        assert!(spent <= trial * 21 / 10, "{stored} blocks took {spent:?}");
    }

    #[test]
    fn touches_are_counted_by_the_second() {
        let limits = Limits::new(&PolicyConfig::default(), Bytes(256 << 20));
        let mut budget = EvictionBudget::default();
        budget.look(&paging(100, Duration::ZERO), Duration::from_secs(1), &limits);
        assert_eq!(budget.touches(), 0);
        budget.look(&paging(120, Duration::ZERO), Duration::from_secs(3), &limits);
        assert_eq!(budget.touches(), 10);
    }
}
