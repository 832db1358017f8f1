// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Invalid requests end in errors and change nothing.

use super::driver::{Driver, blocks, pool, pool_with};
use crate::frames::*;
use crate::units::BLOCK_BYTES;

#[test]
fn rejects_orders_above_the_largest() {
    assert_eq!(Order::new(11), None);
    assert_eq!(Order::for_frames(0), None);
    assert_eq!(Order::for_frames(u32::MAX), None);
}

#[test]
fn returns_frames_of_another_pool_with_the_error() {
    let (one, two) = (pool(1), pool(1));
    let frames = one.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
    let Err(FreeError::Foreign(frames)) = two.free(frames) else { panic!("took it") };
    let owner = Driver::new(&two);
    let Err((OwnerError::Foreign, frames)) = owner.owner().adopt(frames, 0) else {
        panic!("adopted it")
    };
    one.free(frames).unwrap();
    let run = one.alloc_contig(4, 1).unwrap();
    let Err((ContigError::Foreign, run)) = two.free_contig(run) else { panic!("took it") };
    one.free_contig(run).unwrap();
    assert_eq!(one.validate().unwrap().used, 0);
    two.validate().unwrap();
}

#[test]
#[should_panic(expected = "frames of another pool")]
fn panics_on_contents_of_another_pool() {
    let (one, two) = (pool(1), pool(1));
    let frames = one.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
    let _ = two.bytes(&frames);
}

#[test]
fn only_single_frames_are_movable() {
    let pool = pool(1);
    let driver = Driver::new(&pool);
    let pair = pool.alloc(Order::new(1).unwrap(), Gfp::MOVABLE).unwrap();
    let Err((OwnerError::NotSingle, pair)) = driver.owner().adopt(pair, 0) else {
        panic!("adopted a pair")
    };
    pool.free(pair).unwrap();
    let one = pool.alloc(Order::ZERO, Gfp::MOVABLE).unwrap();
    let frame = driver.owner().adopt(one, 0).unwrap();
    driver.owner().free(frame).unwrap();
    pool.validate().unwrap();
}

#[test]
fn rejects_double_frees_and_foreign_frames() {
    let pool = pool(1);
    let (one, two) = (Driver::new(&pool), Driver::new(&pool));
    let frame = one.owner().alloc(Gfp::MOVABLE, 1).unwrap();
    let refused = Err(OwnerError::NotOwned(frame));
    assert_eq!(two.owner().free(frame), refused);
    assert_eq!(two.owner().set_private(frame, 2), refused);
    assert_eq!(two.owner().with_frame(frame, |_| ()), refused);
    assert!(two.owner().reclaim(frame).is_err());
    one.owner().free(frame).unwrap();
    assert_eq!(one.owner().free(frame), refused);
    assert_eq!(one.owner().with_frame(frame, |_| ()), refused);
    for wild in [512, 513, u32::MAX] {
        let wild = FrameId::new(wild);
        assert_eq!(one.owner().free(wild), Err(OwnerError::NotOwned(wild)));
    }
    // An unmovable frame has no owner.
    let fixed = pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
    assert!(one.owner().free(fixed.first()).is_err());
    pool.free(fixed).unwrap();
    assert_eq!(pool.validate().unwrap().used, 0);
}

#[test]
fn rejects_invalid_runs() {
    let pool = pool(2);
    for (frames, align) in [(0, 1), (1025, 1), (u32::MAX, 1), (1, 0), (1, 3)] {
        let invalid = ContigError::Invalid { frames, align };
        assert_eq!(pool.alloc_contig(frames, align).unwrap_err(), invalid);
        assert_eq!(pool.alloc_cma(0, frames, align).unwrap_err(), invalid);
    }
    assert_eq!(pool.alloc_cma(0, 1, 1).unwrap_err(), ContigError::NoArea(0));
    assert_eq!(pool.alloc_contig(1, 1 << 31).unwrap().range().start.index(), 0);
}

#[test]
fn rejects_invalid_cma_areas() {
    let ok = blocks(0, 2);
    let odd = FrameRange { start: FrameId::new(3), end: FrameId::new(512) };
    let empty = FrameRange { start: FrameId::new(512), end: FrameId::new(0) };
    for cma in [vec![odd], vec![empty], vec![blocks(3, 2)], vec![ok, blocks(1, 1)]] {
        let region = Region::anonymous(4 * BLOCK_BYTES).unwrap();
        let config = PoolConfig { cma: cma.clone(), ..Default::default() };
        assert!(matches!(FramePool::new(region, config), Err(PoolError::CmaArea(_))), "{cma:?}");
    }
    pool_with(4, PoolConfig { cma: vec![ok], ..Default::default() }).validate().unwrap();
}

#[test]
fn a_closure_that_panics_leaves_the_frame_usable() {
    let pool = pool(1);
    let driver = Driver::new(&pool);
    let key = driver.put(Gfp::MOVABLE).unwrap();
    let frame = driver.frame_of(key);
    let owner = driver.owner();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        owner.with_frame(frame, |_| panic!("on purpose")).unwrap_or(());
    }));
    assert!(caught.is_err());
    driver.check(key);
    // Freed while its contents are in use: it is released when the last user is done.
    owner.with_frame(frame, |_| owner.free(frame).unwrap()).unwrap();
    driver.table.lock().unwrap().remove(&key);
    assert_eq!(pool.validate().unwrap().used, 0);
}
