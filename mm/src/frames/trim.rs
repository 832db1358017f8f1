// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving the memory under free frames back to the host.

use super::gfp::Gfp;
use super::ids::Order;
use super::pool::FramePool;
use super::region::RegionError;

impl FramePool {
    /// Gives the memory under free units of at least `order` back to the host; the frames stay
    /// free and are filled again when they are next written. Returns the bytes given up, resident
    /// or not.
    ///
    /// The units are off the free lists during the call: a concurrent allocation may fail. Compact
    /// first to get larger units.
    ///
    /// # Errors
    /// The kernel's refusal; all frames are free as before.
    pub fn trim(&self, order: Order) -> Result<u64, RegionError> {
        let mut held = Vec::new();
        let mut result = Ok(0);
        for order in Order::all().rev().filter(|o| *o >= order) {
            while let Ok(unit) = self.alloc(order, Gfp::MOVABLE.without_compaction().emergency()) {
                // SAFETY: the unit was just allocated, so its frames are ours alone.
                let given = unsafe { self.region().discard(unit.first(), order.frames()) };
                held.push(unit);
                match (given, &mut result) {
                    (Ok(()), Ok(bytes)) => *bytes += order.bytes() as u64,
                    (Err(error), _) => {
                        result = Err(error);
                        break;
                    }
                    (Ok(()), Err(_)) => {}
                }
            }
            if result.is_err() {
                break;
            }
        }
        for unit in held {
            let freed = self.free(unit);
            debug_assert!(freed.is_ok(), "allocated from this pool");
        }
        self.drain_caches();
        result
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use crate::frames::{PoolConfig, Region};
    use crate::sys::pagemap::Pagemap;
    use crate::units::{BLOCK_BYTES, HostRange};

    #[test]
    fn frames_are_populated_a_batch_at_a_time() {
        let region = Region::anonymous(16 * BLOCK_BYTES).unwrap();
        region.advise_small().unwrap();
        let config = PoolConfig { populate: true, threads: Some(2), ..PoolConfig::default() };
        let pool = FramePool::new(region, config).unwrap();
        let alloc = || pool.alloc(Order::ZERO, Gfp::MOVABLE).unwrap();
        let mut units = vec![alloc()];
        let batch = resident(&pool);
        assert!((2 << 12..=32 << 12).contains(&batch), "{batch}");
        while units.len() << 12 < batch {
            units.push(alloc());
            assert_eq!(resident(&pool), batch);
        }
        units.push(alloc());
        assert_eq!(resident(&pool), 2 * batch);
        for unit in units {
            pool.free(unit).unwrap();
        }
        pool.trim(Order::ZERO).unwrap();
        assert_eq!(resident(&pool), 0);
    }

    fn resident(pool: &FramePool) -> usize {
        let start = pool.region().ptr(crate::frames::FrameId::new(0)).addr().get();
        let all = HostRange::new(start, pool.region().bytes()).unwrap();
        let mut bytes = 0;
        Pagemap::open().unwrap().walk(all, |run, _| bytes += run.len()).unwrap();
        bytes
    }

    #[test]
    fn free_frames_cost_nothing_and_used_ones_keep_their_contents() {
        let region = Region::anonymous(4 * BLOCK_BYTES).unwrap();
        region.advise_small().unwrap();
        let pool = FramePool::new(region, PoolConfig::default()).unwrap();
        let mut units: Vec<_> = std::iter::from_fn(|| {
            let mut unit = pool.alloc(Order::ZERO, Gfp::MOVABLE.without_compaction()).ok()?;
            pool.bytes_mut(&mut unit).fill(7);
            Some(unit)
        })
        .collect();
        let kept = units.split_off(units.len() - 3);
        let full = resident(&pool);
        for unit in units {
            pool.free(unit).unwrap();
        }
        assert_eq!(resident(&pool), full);
        let before = pool.accounting();
        assert!(pool.trim(Order::ZERO).unwrap() >= (full - (3 << 12)) as u64);
        assert_eq!(resident(&pool), 3 << 12);
        assert!(kept.iter().all(|unit| pool.bytes(unit).iter().all(|&byte| byte == 7)));
        assert_eq!(pool.accounting().free, before.free);
        for unit in kept {
            pool.free(unit).unwrap();
        }
    }
}
