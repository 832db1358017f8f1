// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that allocate, write, read back and free, while classes are compacted, frames are
//! compacted, contiguous memory is taken, and memory runs out, all without pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::pattern;
use crate::frames::{FrameId, FramePool, FrameRange, Gfp, Order, PoolConfig, Region};
use crate::units::BLOCK_BYTES;
use crate::zsmalloc::*;

const RUN: Duration = Duration::from_secs(if cfg!(miri) { 0 } else { 4 });
/// A busy machine gets more, until enough has happened for the run to mean something.
const LIMIT: Duration = if cfg!(miri) { RUN } else { Duration::from_secs(120) };

fn worker(pool: &ZsPool, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = seed;
    let mut next = move || {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        rng
    };
    let check = |seed: u64, size: usize, handle: Handle| {
        let mapped = pool.map(handle).unwrap();
        let mut read = vec![0; size];
        mapped.read(&mut read);
        assert!(read == pattern(seed, size), "object {seed} of {size} bytes changed");
    };
    let mut held: Vec<(u64, usize, Handle)> = Vec::new();
    let mut steps = 0;
    while !stop.load(SeqCst) {
        steps += 1;
        let roll = next();
        if held.len() < 300 && roll % 2 == 0 {
            let size = if roll % 8 == 0 { 4096 } else { 1 + (roll >> 8) as usize % 3000 };
            if let Ok(handle) = pool.alloc(size) {
                pool.map(handle).unwrap().write(&pattern(roll, size));
                held.push((roll, size, handle));
            }
        } else if !held.is_empty() {
            let pick = (roll >> 8) as usize % held.len();
            let (seed, size, handle) = held[pick];
            check(seed, size, handle);
            if roll % 3 == 0 {
                held.swap_remove(pick);
                pool.free(handle).unwrap();
            }
        }
    }
    for (seed, size, handle) in held {
        check(seed, size, handle);
        pool.free(handle).unwrap();
    }
    steps
}

#[test]
fn threads_do_everything_at_once() {
    let area = FrameRange::new(FrameId::new(512), 512).unwrap();
    let region = Region::anonymous(4 * BLOCK_BYTES).unwrap();
    let config = PoolConfig { cma: vec![area], ..Default::default() };
    let frames = FramePool::new(region, config).unwrap();
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    let stop = AtomicBool::new(false);
    let (steps, runs) = (AtomicU64::new(0), AtomicU64::new(0));
    let wrong = std::thread::scope(|s| {
        for seed in 1..=3 {
            let (pool, stop, steps) = (&pool, &stop, &steps);
            s.spawn(move || steps.fetch_add(worker(pool, seed * 7919, stop), SeqCst));
        }
        s.spawn(|| {
            while !stop.load(SeqCst) {
                pool.compact();
                frames.compact();
            }
        });
        s.spawn(|| {
            while !stop.load(SeqCst) {
                let mut run = match frames.alloc_cma(0, 512, 1) {
                    Ok(run) => run,
                    Err(_) => continue,
                };
                frames.contig_bytes_mut(&mut run).fill(0xee);
                runs.fetch_add(1, SeqCst);
                frames.free_contig(run).unwrap();
            }
        });
        s.spawn(|| {
            // A thread that takes all free frames, so that allocations of other threads call
            // shrinkers and fail.
            while !stop.load(SeqCst) {
                let take = || frames.alloc(Order::ZERO, Gfp::UNMOVABLE).ok();
                let held: Vec<_> = std::iter::from_fn(take).collect();
                held.into_iter().for_each(|f| frames.free(f).unwrap());
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let begin = Instant::now();
        let busy = || runs.load(SeqCst) > 3 && pool.stats().frames_migrated > 100;
        let mut wrong = None;
        while wrong.is_none() && (begin.elapsed() < RUN || begin.elapsed() < LIMIT && !busy()) {
            let accounting = frames.accounting();
            wrong = (!accounting.adds_up()).then_some(accounting);
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, SeqCst);
        wrong
    });
    assert_eq!(wrong, None);
    pool.validate();
    if !cfg!(miri) {
        assert!(steps.load(SeqCst) > 1000 && runs.load(SeqCst) > 3);
        assert!(pool.stats().frames_migrated > 100, "{:?}", pool.stats());
    }
    pool.compact();
    assert_eq!(frames.validate().unwrap().used, 0);
}
