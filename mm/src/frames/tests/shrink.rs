// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which shrinkers the pool asks, when, and for how many frames.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::driver::{NO_MARKS, pool_with, quiet};
use crate::frames::*;

/// Holds frames for no purpose.
struct Hoard {
    pool: Arc<FramePool>,
    frames: Mutex<Vec<Frames>>,
    asked: AtomicU64,
    panics: AtomicBool,
}

impl Hoard {
    /// All but `leave` frames of a pool of one block.
    fn new(marks: Watermarks, leave: u32) -> Arc<Self> {
        let config = PoolConfig { uncached: true, watermarks: Some(marks), ..Default::default() };
        let pool = pool_with(1, config);
        let gfp = Gfp::UNMOVABLE.without_compaction().emergency();
        let frames = (0..BLOCK_FRAMES - leave).map(|_| pool.alloc(Order::ZERO, gfp).unwrap());
        let frames = Mutex::new(frames.collect());
        let (asked, panics) = (AtomicU64::new(0), AtomicBool::new(false));
        let hoard = Arc::new(Self { pool: Arc::clone(&pool), frames, asked, panics });
        let weak = Arc::downgrade(&hoard);
        pool.register_shrinker(weak);
        hoard
    }
}

impl Shrink for Hoard {
    fn shrink(&self, frames: u64) -> u64 {
        self.asked.fetch_add(frames, SeqCst);
        assert!(!self.panics.load(SeqCst), "shrink panics on purpose");
        // No shrinker is asked on behalf of an allocation inside a shrinker.
        assert!(self.pool.alloc(Order::MAX, Gfp::MOVABLE).is_err());
        let mut held = self.frames.lock().unwrap();
        let count = held.len().min(frames as usize);
        held.drain(..count).for_each(|f| self.pool.free(f).unwrap());
        count as u64
    }
}

#[test]
fn a_failing_allocation_asks_for_as_many_frames_as_it_needs() {
    let hoard = Hoard::new(Watermarks { high: 4, ..NO_MARKS }, 0);
    let pool = &hoard.pool;
    assert!(pool.alloc(Order::ZERO, Gfp::UNMOVABLE.without_compaction()).is_err());
    assert_eq!(hoard.asked.load(SeqCst), 0, "an allocation without compaction asks no shrinker");
    let frames = pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
    assert_eq!((hoard.asked.load(SeqCst), pool.events().shrunk), (5, 5));
    pool.free(frames).unwrap();
    pool.validate().unwrap();
    // In the end nothing is left to give.
    while pool.alloc(Order::ZERO, Gfp::UNMOVABLE).is_ok() {}
    assert!(hoard.frames.lock().unwrap().is_empty());
    assert_eq!(pool.validate().unwrap().free, 0);
}

#[test]
fn a_shrinker_that_panics_or_is_gone_frees_nothing() {
    quiet();
    let hoard = Hoard::new(NO_MARKS, 0);
    let pool = Arc::clone(&hoard.pool);
    hoard.panics.store(true, SeqCst);
    let none = AllocError::NoMemory { order: Order::ZERO, free: 0 };
    assert_eq!(pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap_err(), none);
    assert_eq!((pool.events().ops_panicked, pool.events().shrunk), (1, 0));
    drop(hoard);
    assert_eq!(pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap_err(), none);
    assert_eq!(pool.events().ops_panicked, 1);
    pool.validate().unwrap();
}

#[test]
#[cfg(not(miri))]
fn the_background_thread_asks_below_low_up_to_high() {
    let hoard = Hoard::new(Watermarks { min: 10, low: 50, high: 90 }, 60);
    let pool = &hoard.pool;
    let background = Background::start(pool, Pace::default()).unwrap();
    let second = Background::start(pool, Pace::default()).err().unwrap();
    assert_eq!(second.kind(), std::io::ErrorKind::AlreadyExists);
    // To below the mark; the allocations themselves find enough.
    let _held: Vec<_> = (0..20).map(|_| pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap()).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while pool.accounting().free < 90 {
        assert!(Instant::now() < deadline, "{:?} {:?}", pool.accounting(), pool.events());
        // Woken again in case the last allocation came before the thread looked.
        let frames = pool.alloc(Order::ZERO, Gfp::UNMOVABLE).unwrap();
        pool.free(frames).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(background);
    pool.validate().unwrap();
    Background::start(pool, Pace::default()).unwrap();
}
