// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that allocate, free, write, read back and verify, while others compact and take
//! contiguous memory without pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::driver::{Driver, Rng, blocks, pool_with};
use crate::frames::*;

const RUN: Duration = Duration::from_secs(if cfg!(miri) { 0 } else { 4 });
/// A busy machine gets more, until enough has happened for the run to mean something.
const LIMIT: Duration = if cfg!(miri) { RUN } else { Duration::from_secs(120) };

fn movable_worker(pool: &FramePool, driver: &Driver, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = Rng(seed);
    let mut keys = Vec::new();
    let mut steps = 0;
    while !stop.load(SeqCst) {
        steps += 1;
        match rng.below(3) {
            0 => keys.extend(driver.put(Gfp::MOVABLE).ok()),
            1 if !keys.is_empty() => {
                driver.check(keys[rng.below(keys.len() as u64) as usize]);
            }
            _ if keys.len() > 400 || (!keys.is_empty() && pool.accounting().free < 600) => {
                let key = keys.swap_remove(rng.below(keys.len() as u64) as usize);
                driver.check(key);
                driver.free(key);
            }
            _ => {}
        }
    }
    for key in keys {
        driver.check(key);
        driver.free(key);
    }
    steps
}

fn unit_worker(pool: &FramePool, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = Rng(seed);
    let mut held: Vec<(u8, Frames)> = Vec::new();
    let mut steps = 0;
    while !stop.load(SeqCst) {
        steps += 1;
        let tag = rng.below(256) as u8;
        if held.len() < 40 {
            let order = Order::new(rng.below(4) as u8).unwrap();
            if let Ok(mut frames) = pool.alloc(order, Gfp::for_mobility(Mobility::Unmovable)) {
                pool.bytes_mut(&mut frames).fill(tag);
                held.push((tag, frames));
            }
        }
        if rng.below(2) == 0 && !held.is_empty() {
            let (tag, frames) = held.swap_remove(rng.below(held.len() as u64) as usize);
            assert!(pool.bytes(&frames).iter().all(|&b| b == tag));
            pool.free(frames).unwrap();
        }
    }
    held.into_iter().for_each(|(_, f)| pool.free(f).unwrap());
    steps
}

fn contig_worker(pool: &FramePool, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = Rng(seed);
    let mut made = 0;
    while !stop.load(SeqCst) {
        let run = if rng.below(2) == 0 {
            pool.alloc_cma(0, 1 + rng.below(1024) as u32, 1)
        } else {
            pool.alloc_contig(1 + rng.below(700) as u32, 1)
        };
        if let Ok(mut run) = run {
            made += 1;
            pool.contig_bytes_mut(&mut run).fill(0xc3);
            std::thread::yield_now();
            assert!(pool.contig_bytes(&run).iter().all(|&b| b == 0xc3));
            pool.free_contig(run).unwrap();
        }
    }
    made
}

#[test]
fn threads_do_everything_at_once() {
    let pool = pool_with(12, PoolConfig { cma: vec![blocks(4, 2)], ..Default::default() });
    let background =
        Background::start(&pool, Pace { pause: Duration::from_millis(1), ..Pace::default() })
            .unwrap();
    let driver = Driver::new(&pool);
    let stop = AtomicBool::new(false);
    let (work, runs, passes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let wrong = std::thread::scope(|s| {
        for seed in 1..=3 {
            let (pool, driver, stop, work) = (&pool, &driver, &stop, &work);
            s.spawn(move || work.fetch_add(movable_worker(pool, driver, seed, stop), SeqCst));
            s.spawn(move || work.fetch_add(unit_worker(pool, seed + 100, stop), SeqCst));
        }
        s.spawn(|| runs.fetch_add(contig_worker(&pool, 5, &stop), SeqCst));
        s.spawn(|| {
            while !stop.load(SeqCst) {
                pool.compact();
                passes.fetch_add(1, SeqCst);
            }
        });
        let begin = Instant::now();
        // The workers report their counts only at the end.
        let busy = || {
            let events = pool.events();
            passes.load(SeqCst) > 3 && events.contig_success > 3 && events.moved > 1000
        };
        let mut wrong = None;
        while wrong.is_none() && (begin.elapsed() < RUN || begin.elapsed() < LIMIT && !busy()) {
            let accounting = pool.accounting();
            wrong = (!accounting.adds_up()).then_some(accounting);
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, SeqCst);
        wrong
    });
    assert_eq!(wrong, None, "does not add up; at rest {:?}", pool.validate());
    drop(background);
    assert_eq!(pool.validate().unwrap().used, 0);
    if !cfg!(miri) {
        let events = pool.events();
        assert!(work.load(SeqCst) > 1000 && passes.load(SeqCst) > 3, "{events:?}");
        assert!(runs.load(SeqCst) > 3 && events.moved > 1000, "{events:?}");
    }
    pool.drain_caches();
    assert_eq!(pool.free_info().units_of(Order::MAX), 6);
}
