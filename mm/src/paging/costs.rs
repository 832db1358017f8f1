// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What eviction costs, what it gains, and when it pays.

use std::time::Duration;

use crate::units::SaturatingInto;

/// The value of eviction: CPU time against bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionCosts {
    /// CPU time to take a block out and compress it.
    pub evict: Duration,
    /// CPU time to bring a block back.
    pub fill: Duration,
    /// Host memory freed by one absent block, less its compressed size.
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
    /// The shortest absence that pays for evicting a block and bringing it back.
    pub fn break_even(&self) -> Duration {
        let us = self.evict.saturating_add(self.fill).as_micros();
        let price = us.saturating_mul(self.bytes_per_us.into()).saturating_mul(1000);
        let ms = price.checked_div(self.freed_bytes.into()).unwrap_or(u128::MAX);
        Duration::from_millis(ms.saturating_u64())
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

    proptest! {
        /// Eviction pays off later if it costs more time, frees less memory, or if memory is worth
        /// less.
        #[test]
        fn break_even_grows_with_costs_and_falls_with_gains(
            evict_us in 1u64..10_000,
            fill_us in 1u64..10_000,
            freed_kib in 1u64..2048,
            bytes_per_us in 1u64..100_000,
            more in 2u64..10,
        ) {
            let costs = EvictionCosts {
                evict: Duration::from_micros(evict_us),
                fill: Duration::from_micros(fill_us),
                freed_bytes: freed_kib << 10,
                bytes_per_us,
            };
            let factor = u32::try_from(more).unwrap();
            let at = costs.break_even();
            let dearer = EvictionCosts { evict: costs.evict * factor, ..costs }.break_even();
            let slower = EvictionCosts { fill: costs.fill * factor, ..costs }.break_even();
            let richer = EvictionCosts { freed_bytes: costs.freed_bytes * more, ..costs };
            let stricter = EvictionCosts { bytes_per_us: bytes_per_us * more, ..costs };
            prop_assert!(dearer >= at && slower >= at);
            prop_assert!(richer.break_even() <= at);
            prop_assert!(stricter.break_even() >= at);
        }
    }
}
