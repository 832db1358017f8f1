// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random histories against a model that knows only which owner has which frame.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::driver::{Driver, NO_MARKS, blocks, pool_with};
use crate::frames::*;

#[derive(Clone, Debug)]
enum Step {
    Alloc { order: u8, mobility: usize },
    Free { pick: usize },
    Put,
    Drop { pick: usize },
    Compact,
    Contig { count: u32, align: u32 },
    Cma { count: u32 },
    FreeRun { pick: usize },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..=MAX_ORDER, 0..3usize).prop_map(|(order, mobility)| Step::Alloc { order, mobility }),
        8 => any::<usize>().prop_map(|pick| Step::Free { pick }),
        12 => Just(Step::Put),
        10 => any::<usize>().prop_map(|pick| Step::Drop { pick }),
        1 => Just(Step::Compact),
        2 => (1..1200u32, 0..10u32).prop_map(|(count, a)| Step::Contig { count, align: 1 << a }),
        2 => (1..1100u32).prop_map(|count| Step::Cma { count }),
        3 => any::<usize>().prop_map(|pick| Step::FreeRun { pick }),
        1 => Just(Step::Drain),
    ]
}

/// What the model holds: every allocation, and the set of allocated frames.
#[derive(Default)]
struct Model {
    units: Vec<Frames>,
    runs: Vec<ContigFrames>,
    keys: Vec<u32>,
}

impl Model {
    fn taken(&self, driver: &Driver) -> BTreeSet<u32> {
        let mut taken = BTreeSet::new();
        let mut add = |start: u32, count: u32| {
            for frame in start..start + count {
                assert!(taken.insert(frame), "frame {frame} is allocated twice");
            }
        };
        for unit in &self.units {
            add(unit.first().index(), unit.order().frames());
        }
        for run in &self.runs {
            add(run.range().start.index(), run.range().count());
        }
        for frame in driver.table.lock().unwrap().values() {
            add(frame.index(), 1);
        }
        taken
    }
}

fn take<T>(from: &mut Vec<T>, pick: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(pick % from.len()))
}

fn apply(pool: &FramePool, driver: &Driver, model: &mut Model, step: Step) {
    match step {
        Step::Alloc { order, mobility } => {
            let gfp = Gfp::for_mobility(Mobility::ALL[mobility]);
            model.units.extend(pool.alloc(Order::new(order).unwrap(), gfp));
        }
        Step::Free { pick } => {
            take(&mut model.units, pick).into_iter().for_each(|f| pool.free(f).unwrap());
        }
        Step::Put => model.keys.extend((0..40).map_while(|_| driver.put(Gfp::MOVABLE).ok())),
        Step::Drop { pick } => {
            for i in 0..30 {
                take(&mut model.keys, pick.wrapping_add(i * 7))
                    .into_iter()
                    .for_each(|k| driver.free(k));
            }
        }
        Step::Compact => {
            pool.compact();
        }
        Step::Contig { count, align } => model.runs.extend(pool.alloc_contig(count, align)),
        Step::Cma { count } => model.runs.extend(pool.alloc_cma(0, count, 1)),
        Step::FreeRun { pick } => {
            take(&mut model.runs, pick).into_iter().for_each(|r| pool.free_contig(r).unwrap());
        }
        Step::Drain => pool.drain_caches(),
    }
}

fn history(steps: Vec<Step>, uncached: bool) {
    let config = PoolConfig {
        cma: vec![blocks(2, 2)],
        uncached,
        watermarks: Some(NO_MARKS),
        threads: Some(2),
        populate: !uncached,
    };
    let pool = pool_with(6, config);
    let driver = Driver::new(&pool);
    let mut model = Model::default();
    for step in steps {
        let told = format!("{step:?}");
        apply(&pool, &driver, &mut model, step);
        let accounting = pool.validate().unwrap_or_else(|e| panic!("after {told}: {e}"));
        assert_eq!(accounting.isolated, 0, "after {told}");
        assert_eq!(accounting.used as usize, model.taken(&driver).len(), "after {told}");
    }
    driver.check_all();
    model.units.drain(..).for_each(|f| pool.free(f).unwrap());
    model.runs.drain(..).for_each(|r| pool.free_contig(r).unwrap());
    model.keys.drain(..).for_each(|k| driver.free(k));
    assert_eq!(pool.validate().unwrap().free, pool.frame_count());
    pool.drain_caches();
    // With everything free, all memory is whole again; CMA blocks 2 and 3 form a unit of their own.
    assert_eq!(pool.free_info().units_of(Order::MAX), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 48 }, ..Default::default() })]

    #[test]
    fn nothing_is_lost_or_given_twice(
        steps in proptest::collection::vec(step(), 1..if cfg!(miri) { 12 } else { 120 }),
        uncached: bool,
    ) {
        history(steps, uncached);
    }
}
