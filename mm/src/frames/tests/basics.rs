// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Allocation, migrate types, watermarks, caches and compaction, one thing at a time.

use super::driver::{Driver, NO_MARKS, Rng, blocks, pool, pool_with};
use crate::frames::*;
use crate::units::BLOCK_BYTES;

#[test]
fn metadata_is_small() {
    assert!(FramePool::metadata_bytes_per_frame() <= 32);
}

#[test]
fn everything_can_be_allocated_and_given_back() {
    let pool = pool(4);
    for order in Order::all() {
        let mut held = Vec::new();
        while let Ok(frames) = pool.alloc(order, Gfp::UNMOVABLE) {
            assert!(frames.first().is_aligned(order));
            held.push(frames);
        }
        assert_eq!(held.len() as u32 * order.frames(), pool.frame_count());
        assert_eq!(pool.validate().unwrap().free, 0);
        held.into_iter().for_each(|f| pool.free(f).unwrap());
        assert_eq!(pool.validate().unwrap().free, pool.frame_count());
        assert_eq!(pool.free_info().units_of(Order::MAX), 2, "merged again after order {order}");
    }
}

#[test]
fn units_never_overlap_and_hold_what_is_written() {
    let pool = pool(2);
    let mut rng = Rng(7);
    let mut held = Vec::new();
    for tag in 0..64u8 {
        let order = Order::new(rng.below(5) as u8).unwrap();
        let Ok(mut frames) = pool.alloc(order, Gfp::UNMOVABLE) else { break };
        pool.bytes_mut(&mut frames).fill(tag);
        held.push((tag, frames));
    }
    for (tag, frames) in held {
        assert!(pool.bytes(&frames).iter().all(|b| *b == tag));
        pool.free(frames).unwrap();
    }
    pool.validate().unwrap();
}

#[test]
fn owned_frames_free_themselves() {
    let pool = pool(1);
    let order = Order::new(3).unwrap();
    let mut owned = OwnedFrames::new(&pool, order, Gfp::UNMOVABLE).unwrap();
    owned.fill(3);
    assert_eq!(owned.len(), order.bytes());
    assert_eq!(pool.accounting().used, 8);
    drop(owned);
    assert_eq!(pool.validate().unwrap().used, 0);
}

#[test]
fn unmovable_frames_gather_in_few_blocks() {
    let pool = pool(8);
    let driver = Driver::new(&pool);
    let mut fixed = Vec::new();
    for i in 0..8 * BLOCK_FRAMES / 2 {
        driver.put(Gfp::MOVABLE).unwrap();
        if i % 16 == 0 {
            fixed.push(pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap());
        }
    }
    let with_fixed = pool.block_kinds().fixed;
    assert_eq!(with_fixed, 1, "128 unmovable frames need one block");
    fixed.into_iter().for_each(|f| pool.free(f).unwrap());
    pool.validate().unwrap();
}

#[test]
fn each_mobility_falls_back_to_the_others() {
    for mobility in Mobility::ALL {
        let pool = pool(2);
        let mut held = Vec::new();
        while let Ok(f) = pool.alloc(Order::ZERO, Gfp::for_mobility(mobility)) {
            held.push(f);
        }
        assert_eq!(held.len() as u32, pool.frame_count(), "{mobility:?}");
        pool.validate().unwrap();
        held.into_iter().for_each(|f| pool.free(f).unwrap());
        pool.validate().unwrap();
    }
}

#[test]
fn watermarks_keep_a_reserve_for_emergencies() {
    let marks = Watermarks { min: 100, low: 120, high: 140 };
    let config = PoolConfig { uncached: true, watermarks: Some(marks), ..Default::default() };
    let pool = pool_with(1, config);
    let mut held = Vec::new();
    let error = loop {
        match pool.alloc(Order::ZERO, Gfp::UNMOVABLE) {
            Ok(frames) => held.push(frames),
            Err(error) => break error,
        }
    };
    assert_eq!(error, AllocError::NoMemory { order: Order::ZERO, free: 100 });
    held.push(pool.alloc(Order::ZERO, Gfp::UNMOVABLE.emergency()).unwrap());
    assert_eq!(pool.validate().unwrap().free, 99);
}

#[test]
fn only_movable_frames_come_from_cma() {
    let config = PoolConfig {
        cma: vec![blocks(1, 2)],
        uncached: true,
        watermarks: Some(NO_MARKS),
        ..Default::default()
    };
    let pool = pool_with(4, config);
    let mut fixed = Vec::new();
    while let Ok(f) = pool.alloc(Order::ZERO, Gfp::UNMOVABLE) {
        assert!(!blocks(1, 2).contains(f.first()));
        fixed.push(f);
    }
    assert_eq!(pool.accounting().free, 2 * BLOCK_FRAMES);
    assert_eq!(pool.accounting().free_cma, 2 * BLOCK_FRAMES);
    let driver = Driver::new(&pool);
    for _ in 0..2 * BLOCK_FRAMES {
        driver.put(Gfp::MOVABLE).unwrap();
    }
    assert_eq!(pool.validate().unwrap().free, 0);
}

#[test]
fn caches_are_counted_and_drained() {
    let pool = pool_with(16, PoolConfig { threads: Some(2), ..Default::default() });
    let frames = pool.alloc(Order::ZERO, Gfp::MOVABLE).unwrap();
    let accounting = pool.validate().unwrap();
    assert!(accounting.cached > 0);
    assert_eq!(accounting.used, 1);
    // Freed by another thread than the one that allocated.
    std::thread::scope(|s| s.spawn(|| pool.free(frames).unwrap()).join().unwrap());
    assert_eq!(pool.validate().unwrap().used, 0);
    pool.drain_caches();
    assert_eq!(pool.validate().unwrap().cached, 0);
    assert_eq!(pool.free_info().units_of(Order::MAX), 8);
}

#[test]
fn compaction_makes_whole_blocks_and_keeps_contents() {
    let pool = pool(16);
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..16 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    for key in keys.iter().filter(|&k| k % 4 != 0) {
        driver.free(*key);
    }
    assert_eq!(pool.free_info().available(Order::BLOCK), 0);
    let report = pool.compact();
    assert_eq!(report.end, CompactEnd::Complete);
    assert!(report.moved > 0);
    assert_eq!(pool.free_info().available(Order::BLOCK), 12);
    driver.check_all();
    pool.validate().unwrap();
}

#[test]
fn an_allocation_compacts_for_itself() {
    let pool = pool(8);
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..8 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    for key in keys.iter().filter(|&k| k % 2 != 0) {
        driver.free(*key);
    }
    let order = Order::new(3).unwrap();
    let refused = pool.alloc(order, Gfp::UNMOVABLE.without_compaction());
    assert!(matches!(refused, Err(AllocError::Fragmented { .. })));
    for order in [3, 5, 9] {
        let order = Order::new(order).unwrap();
        let frames = pool.alloc(order, Gfp::UNMOVABLE).unwrap();
        assert!(frames.first().is_aligned(order));
        pool.validate().unwrap();
        driver.check_all();
        pool.free(frames).unwrap();
    }
    assert!(pool.events().compact_success > 0);
}

#[test]
fn compaction_cannot_pass_unmovable_frames() {
    let pool = pool(4);
    let held: Vec<_> =
        (0..4 * BLOCK_FRAMES).map(|_| pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap()).collect();
    let (keep, free): (Vec<_>, Vec<_>) = held.into_iter().partition(|f| f.first().index() % 2 == 0);
    free.into_iter().for_each(|f| pool.free(f).unwrap());
    assert_eq!(pool.compact().moved, 0);
    let error = pool.alloc(Order::new(1).unwrap(), Gfp::UNMOVABLE).unwrap_err();
    assert!(matches!(error, AllocError::Fragmented { free: 1024, .. }));
    assert_eq!(pool.events().compact_fail, 1);
    keep.into_iter().for_each(|f| pool.free(f).unwrap());
    pool.validate().unwrap();
}

#[test]
#[cfg(not(miri))]
fn the_background_thread_makes_blocks_at_its_pace() {
    use std::time::{Duration, Instant};
    let pool = pool(8);
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..8 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    for key in keys.iter().filter(|&k| k % 2 != 0) {
        driver.free(*key);
    }
    let budget = Pace { frames: 64, pause: Duration::from_millis(1), order: Order::BLOCK };
    let background = Background::start(&pool, budget).unwrap();
    // An allocation that cannot be served immediately wakes the background thread.
    let _ = pool.alloc(Order::BLOCK, Gfp::MOVABLE.without_compaction());
    assert_eq!(pool.events().background_runs, 0, "not asked by one that may not compact");
    let small = pool.alloc(Order::new(1).unwrap(), Gfp::MOVABLE).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The allocation's own compaction shares the work, and may be done before the thread begins.
    while pool.free_info().available(Order::BLOCK) == 0 || pool.events().background_runs == 0 {
        assert!(Instant::now() < deadline, "no block after 20 s: {:?}", pool.events());
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(background);
    pool.free(small).unwrap();
    driver.check_all();
    pool.validate().unwrap();
}

#[test]
#[cfg(not(miri))]
fn works_on_memfd_and_hugetlb() {
    let mut regions = vec![Region::memfd(4 * BLOCK_BYTES).unwrap()];
    match Region::hugetlb(4 * BLOCK_BYTES) {
        Ok(region) => regions.push(region),
        // The host has no free huge pages: the error must say so.
        Err(error) => assert!(matches!(error, RegionError::Os { .. }), "{error}"),
    }
    for region in regions {
        let config = PoolConfig { cma: vec![blocks(0, 2)], ..Default::default() };
        let pool = FramePool::new(region, config).unwrap();
        let driver = Driver::new(&pool);
        let keys: Vec<_> = (0..1900).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
        for key in keys.iter().filter(|&k| k % 8 != 0) {
            driver.free(*key);
        }
        let mut run = pool.alloc_cma(0, 2 * BLOCK_FRAMES, 1).unwrap();
        pool.contig_bytes_mut(&mut run).fill(0x5a);
        driver.check_all();
        pool.free_contig(run).unwrap();
        pool.validate().unwrap();
    }
}
