// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration contract: what the pool does when owners refuse, fail, free, panic or report false
//! results.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use super::driver::{Driver, Mood, pool};
use crate::frames::*;

/// A pool of four blocks, every other frame the driver's.
fn half_full() -> (Arc<FramePool>, Arc<Driver>, u32) {
    let pool = pool(4);
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..4 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    for key in keys.iter().filter(|&k| k % 2 != 0) {
        driver.free(*key);
    }
    let used = pool.validate().unwrap().used;
    (pool, driver, used)
}

fn counts(driver: &Driver) -> (u64, u64, u64) {
    (driver.isolated.load(SeqCst), driver.migrated.load(SeqCst), driver.putback.load(SeqCst))
}

#[test]
fn every_isolation_ends_in_a_migration_or_a_putback() {
    for mood in [Mood::Honest, Mood::FailTwice, Mood::FailFinal, Mood::RefuseIsolation] {
        let (pool, driver, used) = half_full();
        driver.set_mood(mood);
        let report = pool.compact();
        let (isolated, migrated, putback) = counts(&driver);
        assert_eq!(isolated, migrated + putback, "{mood:?}");
        assert_eq!(report.moved, migrated, "{mood:?}");
        match mood {
            Mood::Honest | Mood::FailTwice => {
                assert_eq!(putback, 0);
                assert_eq!(pool.free_info().available(Order::BLOCK), 2, "{mood:?}");
            }
            Mood::FailFinal => assert_eq!((migrated, putback), (0, isolated)),
            _ => assert_eq!(isolated, 0),
        }
        driver.check_all();
        assert_eq!(pool.validate().unwrap().used, used);
        assert_eq!(pool.isolated_now(), 0);
    }
}

#[test]
fn frames_freed_while_isolated_are_dropped_not_put_back() {
    for mood in [Mood::FreeInIsolate, Mood::FreeInMigrate] {
        let (pool, driver, used) = half_full();
        driver.set_mood(mood);
        pool.compact();
        let (isolated, migrated, putback) = counts(&driver);
        assert!(isolated > 0);
        assert_eq!((migrated, putback), (0, 0), "{mood:?}");
        assert_eq!(pool.events().freed_while_isolated, isolated, "{mood:?}");
        assert_eq!(u64::from(pool.validate().unwrap().used), u64::from(used) - isolated);
        driver.set_mood(Mood::Honest);
        driver.check_all();
    }
}

#[test]
fn a_panic_counts_as_a_failure() {
    for mood in [Mood::PanicInIsolate, Mood::PanicInMigrate, Mood::PanicInPutback] {
        let (pool, driver, used) = half_full();
        driver.set_mood(mood);
        assert_eq!(pool.compact().moved, 0, "{mood:?}");
        assert!(pool.events().ops_panicked > 0);
        assert_eq!(pool.validate().unwrap().used, used);
        driver.set_mood(Mood::Honest);
        pool.compact();
        driver.check_all();
        assert_eq!(pool.free_info().available(Order::BLOCK), 2, "{mood:?}: works again after");
    }
}

#[test]
fn a_false_success_moves_nothing_and_loses_nothing() {
    let (pool, driver, used) = half_full();
    driver.set_mood(Mood::Lie);
    pool.compact();
    assert!(pool.events().ops_lied > 0);
    assert_eq!(pool.validate().unwrap().used, used);
    driver.set_mood(Mood::Honest);
    driver.check_all();
}

#[test]
fn a_destination_that_was_adopted_stays_with_its_owner() {
    let (pool, driver, used) = half_full();
    driver.set_mood(Mood::AdoptAndFail);
    pool.compact();
    driver.set_mood(Mood::Honest);
    let adopted = pool.events().isolated;
    assert!(adopted > 0);
    assert_eq!(u64::from(pool.validate().unwrap().used), u64::from(used) + adopted);
    driver.check_all();
}

#[test]
fn callbacks_may_call_the_pool() {
    let (pool, driver, used) = half_full();
    driver.set_mood(Mood::Reenter);
    assert!(pool.compact().moved > 0);
    driver.check_all();
    assert_eq!(pool.validate().unwrap().used, used);
}

#[test]
fn frames_of_an_owner_that_is_gone_stay_where_they_are() {
    let (pool, driver, used) = half_full();
    drop(driver);
    assert_eq!(pool.compact().moved, 0);
    assert_eq!(pool.validate().unwrap().used, used);
}

/// An owner that drops its last reference when it is called, and panics in its `drop`.
struct Mayfly(Mutex<Option<Arc<Self>>>);

impl Drop for Mayfly {
    fn drop(&mut self) {
        panic!("drop panics on purpose");
    }
}

impl MovableOps for Mayfly {
    fn isolate(&self, _: &LockedFrame<'_>, _: MigrateMode) -> bool {
        self.0.lock().unwrap().take();
        false
    }

    fn migrate(
        &self,
        _: &mut TargetFrame<'_>,
        _: &mut LockedFrame<'_>,
        _: MigrateMode,
    ) -> Result<(), MigrateError> {
        unreachable!("nothing was isolated")
    }

    fn putback(&self, _: &LockedFrame<'_>) {}
}

#[test]
fn an_owner_may_be_dropped_during_a_pass() {
    let (pool, driver, used) = half_full();
    driver.set_mood(Mood::Honest);
    let mayfly = Arc::new(Mayfly(Mutex::default()));
    *mayfly.0.lock().unwrap() = Some(Arc::clone(&mayfly));
    let weak = Arc::downgrade(&mayfly);
    drop(mayfly);
    // Takes a gap between two frames of the driver, which are looked at before and after.
    Owner::register(&pool, weak.clone()).unwrap().alloc(Gfp::MOVABLE, 0).unwrap();
    pool.compact();
    assert!(weak.upgrade().is_none());
    let accounting = pool.validate().unwrap();
    assert_eq!((accounting.used, accounting.isolated), (used + 1, 0));
    driver.check_all();
}

#[test]
fn a_frame_in_use_is_not_moved() {
    let (pool, driver, _) = half_full();
    // The lowest frame: the scanner for sources starts at the bottom.
    let (frame, key) = driver.table.lock().unwrap().iter().map(|(&k, &f)| (f, k)).min().unwrap();
    driver
        .owner()
        .with_frame(frame, |_| {
            // Another thread compacts concurrently.
            std::thread::scope(|s| s.spawn(|| pool.compact()).join().unwrap());
        })
        .unwrap();
    assert_eq!(driver.frame_of(key), frame);
    pool.validate().unwrap();
    pool.compact();
    assert_ne!(driver.frame_of(key), frame, "and moves once it is not");
    driver.check_all();
}

#[test]
fn reclaiming_ends_movability() {
    let (pool, driver, used) = half_full();
    let key = *driver.table.lock().unwrap().keys().next().unwrap();
    let frame = driver.frame_of(key);
    driver.table.lock().unwrap().remove(&key);
    let frames = driver.owner().reclaim(frame).unwrap();
    pool.compact();
    assert_eq!(frames.first(), frame);
    assert_eq!(pool.validate().unwrap().used, used);
    pool.free(frames).unwrap();
    assert_eq!(pool.validate().unwrap().used, used - 1);
}
