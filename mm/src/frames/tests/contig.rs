// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous allocation and CMA areas.

use super::driver::{Driver, Mood, NO_MARKS, blocks, pool, pool_with};
use crate::frames::*;
use crate::units::BLOCK_BYTES;

fn cma_pool() -> std::sync::Arc<FramePool> {
    let config = PoolConfig {
        cma: vec![blocks(2, 3)],
        uncached: true,
        watermarks: Some(NO_MARKS),
        ..Default::default()
    };
    pool_with(8, config)
}

#[test]
fn takes_an_area_back_from_movable_frames() {
    let pool = cma_pool();
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..8 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    assert_eq!(pool.accounting().free_cma, 0);
    for key in keys.iter().filter(|&k| k % 2 != 0) {
        driver.free(*key);
    }
    let mut run = pool.alloc_cma(0, 3 * BLOCK_FRAMES, 1).unwrap();
    assert_eq!(run.range(), blocks(2, 3));
    assert_eq!(run.bytes(), 3 * BLOCK_BYTES);
    pool.contig_bytes_mut(&mut run).fill(0xff);
    driver.check_all();
    let accounting = pool.validate().unwrap();
    assert_eq!(accounting.used, (8 * BLOCK_FRAMES) / 2 + 3 * BLOCK_FRAMES);
    assert!(pool.contig_bytes(&run).iter().all(|&b| b == 0xff));
    pool.free_contig(run).unwrap();
    assert_eq!(pool.validate().unwrap().free_cma, 3 * BLOCK_FRAMES);
    assert_eq!(pool.free_info().blocks_of(MigrateType::Cma), 3);
}

#[test]
fn small_runs_share_blocks() {
    let pool = cma_pool();
    let runs: Vec<_> = (0..64).map(|_| pool.alloc_cma(0, 20, 4).unwrap()).collect();
    for run in &runs {
        assert!(run.range().start.index().is_multiple_of(4));
        assert!(blocks(2, 3).contains(run.range().start));
    }
    let mut starts: Vec<_> = runs.iter().map(|r| r.range().start.index()).collect();
    starts.sort_unstable();
    assert!(starts.windows(2).all(|w| w[1] - w[0] >= 20), "runs overlap");
    assert_eq!(pool.validate().unwrap().used, 64 * 20);
    runs.into_iter().for_each(|r| pool.free_contig(r).unwrap());
    assert_eq!(pool.validate().unwrap().used, 0);
    pool.free_contig(pool.alloc_cma(0, 3 * BLOCK_FRAMES, 512).unwrap()).unwrap();
}

#[test]
fn runs_of_any_length_outside_cma() {
    let pool = pool(8);
    let driver = Driver::new(&pool);
    let keys: Vec<_> = (0..8 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
    for key in keys.iter().filter(|&k| k % 2 != 0) {
        driver.free(*key);
    }
    for (count, align) in [(1, 1), (3, 1), (513, 1), (1000, 8), (1025, 512)] {
        let run = pool.alloc_contig(count, align).unwrap();
        assert_eq!(run.range().count(), count);
        assert!(run.range().start.index().is_multiple_of(align));
        driver.check_all();
        pool.validate().unwrap();
        pool.free_contig(run).unwrap();
        pool.validate().unwrap();
    }
}

#[test]
fn an_unmovable_frame_is_named_and_passed_over() {
    let pool = pool(4);
    let fixed = pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
    let other = fixed.first().block();
    let run = pool.alloc_contig(BLOCK_FRAMES, BLOCK_FRAMES).unwrap();
    assert_ne!(run.range().start.block(), other);
    pool.free_contig(run).unwrap();
    let whole = pool.alloc_contig(4 * BLOCK_FRAMES, 1).unwrap_err();
    assert_eq!(whole, ContigError::NotFound(4 * BLOCK_FRAMES));
    pool.free(fixed).unwrap();
    pool.free_contig(pool.alloc_contig(4 * BLOCK_FRAMES, 1).unwrap()).unwrap();
    pool.validate().unwrap();
}

#[test]
fn returns_busy_and_changes_nothing_if_owners_refuse() {
    for mood in [Mood::RefuseIsolation, Mood::FailFinal, Mood::Lie, Mood::PanicInMigrate] {
        let pool = cma_pool();
        let driver = Driver::new(&pool);
        let keys: Vec<_> =
            (0..8 * BLOCK_FRAMES).map(|_| driver.put(Gfp::MOVABLE).unwrap()).collect();
        for key in keys.iter().filter(|&k| k % 5 < 2) {
            driver.free(*key);
        }
        let before = pool.validate().unwrap();
        driver.set_mood(mood);
        let error = pool.alloc_cma(0, BLOCK_FRAMES, BLOCK_FRAMES).unwrap_err();
        assert!(matches!(error, ContigError::Busy(_)), "{mood:?}: {error}");
        assert_eq!(pool.validate().unwrap(), before, "{mood:?}");
        assert_eq!(pool.free_info().blocks_of(MigrateType::Isolate), 0);
        driver.set_mood(Mood::Honest);
        driver.check_all();
        pool.free_contig(pool.alloc_cma(0, BLOCK_FRAMES, BLOCK_FRAMES).unwrap()).unwrap();
    }
}

#[test]
fn returns_no_room_if_nothing_is_free_elsewhere() {
    let pool = cma_pool();
    let driver = Driver::new(&pool);
    for _ in 0..8 * BLOCK_FRAMES {
        driver.put(Gfp::MOVABLE).unwrap();
    }
    assert_eq!(pool.alloc_cma(0, 64, 1).unwrap_err(), ContigError::NoRoom);
    driver.check_all();
    pool.validate().unwrap();
}

#[test]
fn order_ten_units_across_a_range_are_split_and_merged_again() {
    let pool = pool(4);
    assert_eq!(pool.free_info().units_of(Order::MAX), 2);
    let run = pool.alloc_contig(10, 1).unwrap();
    assert_eq!(run.range().start.index(), 0);
    pool.validate().unwrap();
    pool.free_contig(run).unwrap();
    assert_eq!(pool.free_info().units_of(Order::MAX), 2);
    pool.validate().unwrap();
}
