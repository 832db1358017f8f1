// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The claim: compressed pages and GPU-like buffers spread over all blocks, then high orders,
//! blocks and a CMA area are asked for. Once with movable frames, once without.

use std::sync::Arc;

use mm::frames::{BLOCK_FRAMES, FramePool, Frames, Gfp, Order};
use mm::zsmalloc::{Handle, ZsConfig, ZsPool};

use crate::Figures;
use crate::common::{Rng, Stock, compressed_size, pool};

/// 256 MiB.
const BLOCKS: usize = 128;
/// Frames in one GPU-like buffer.
const BUFFER: u32 = 64;
/// Buffers that grow at the same time, a few frames each in turn.
const GROWING: usize = 16;

/// A pool with both users in it.
struct Load {
    pool: Arc<FramePool>,
    zs: Arc<ZsPool>,
    stock: Stock,
    objects: Vec<Handle>,
    buffers: Vec<u32>,
    /// Buffers being filled, with the frames that they have.
    growing: Vec<(u32, u32)>,
    next_buffer: u32,
    free_buffers: Vec<u32>,
    rng: Rng,
}

impl Load {
    fn new(cma_blocks: u32, movable: bool, seed: u64) -> Self {
        let pool = pool(BLOCKS, cma_blocks);
        let zs = ZsPool::new(&pool, ZsConfig { movable, limit: None }).expect("a pool");
        let stock = Stock::new(&pool, movable);
        Self {
            pool,
            zs,
            stock,
            objects: Vec::new(),
            buffers: Vec::new(),
            growing: Vec::new(),
            next_buffer: 0,
            free_buffers: Vec::new(),
            rng: Rng(seed),
        }
    }

    fn free_share(&self) -> f64 {
        f64::from(self.pool.accounting().free) / f64::from(self.pool.frame_count())
    }

    /// Adds frames to a growing buffer or stores some objects; `false` at the first failure.
    fn grow(&mut self) -> bool {
        if self.rng.below(3) != 0 {
            for _ in 0..6 {
                let Ok(handle) = self.zs.alloc(compressed_size(&mut self.rng)) else {
                    return false;
                };
                self.objects.push(handle);
            }
            return true;
        }
        if self.growing.len() < GROWING {
            let buffer = self.free_buffers.pop().unwrap_or_else(|| {
                self.next_buffer += 1;
                self.next_buffer - 1
            });
            self.growing.push((buffer, 0));
        }
        let pick = self.rng.below(self.growing.len());
        for _ in 0..4 {
            let (buffer, frames) = &mut self.growing[pick];
            if self.stock.alloc(*buffer * BUFFER + *frames).is_err() {
                return false;
            }
            *frames += 1;
            if *frames == BUFFER {
                self.buffers.push(*buffer);
                self.growing.swap_remove(pick);
                break;
            }
        }
        true
    }

    /// Frees a random buffer or random objects.
    fn give_up(&mut self) {
        if self.rng.below(3) == 0 && !self.buffers.is_empty() {
            let pick = self.rng.below(self.buffers.len());
            let buffer = self.buffers.swap_remove(pick);
            (0..BUFFER).for_each(|i| self.stock.free(buffer * BUFFER + i));
            self.free_buffers.push(buffer);
            return;
        }
        for _ in 0..48.min(self.objects.len()) {
            let pick = self.rng.below(self.objects.len());
            self.zs.free(self.objects.swap_remove(pick)).expect("once");
        }
    }

    /// Fills the pool until nothing is left, and keeps replacing, so that both users and what is
    /// free are spread over all of it.
    fn spread(&mut self, low: f64, high: f64) {
        while self.grow() {}
        while self.free_share() < low {
            self.give_up();
        }
        for _ in 0..20_000 {
            self.churn(low, high);
        }
    }

    fn churn(&mut self, low: f64, high: f64) {
        match self.free_share() {
            free if free < low => self.give_up(),
            free if free > high => drop(self.grow()),
            _ if self.rng.below(2) == 0 => self.give_up(),
            _ => drop(self.grow()),
        }
        while self.free_share() < 0.05 {
            self.give_up();
        }
    }
}

/// What happened.
struct Outcome {
    requests: [u32; 2],
    failures: [u32; 2],
    blocks: u32,
    blocks_possible: u32,
    cma_free_share: f64,
    cma_taken: bool,
}

fn measure(movable: bool) -> Outcome {
    let mut load = Load::new(0, movable, 4242);
    load.spread(0.055, 0.08);
    println!("  spread: {:.1} % free\n{}", load.free_share() * 100.0, load.pool.free_info());
    let (requests, failures) = high_orders(&mut load);
    // A third goes, at random; then everything is packed.
    while load.free_share() < 0.35 {
        load.give_up();
    }
    let report = load.pool.compact();
    let possible = load.pool.accounting().free / BLOCK_FRAMES;
    let blocks = load.pool.free_info().available(Order::BLOCK);
    println!("  {report:?}\n{}", load.pool.free_info());
    load.pool.validate().expect("consistent");
    drop(load);

    let cma_blocks = 64;
    let mut load = Load::new(cma_blocks, movable, 1717);
    while load.grow() {}
    let cma_frames = cma_blocks * BLOCK_FRAMES;
    let accounting = load.pool.accounting();
    println!("  first failure: {accounting:?}");
    let cma_free_share = f64::from(accounting.free_cma) / f64::from(cma_frames);
    // Room for what lies in the area; then all of it at once.
    while load.free_share() < 0.55 {
        load.give_up();
    }
    load.zs.compact();
    let run = load.pool.alloc_cma(0, cma_frames, 1);
    println!("  the whole area of {cma_frames} frames: {:?}", run.as_ref().map(|_| "taken"));
    let cma_taken = run.is_ok();
    if let Ok(run) = run {
        load.pool.free_contig(run).expect("of this pool");
    }
    load.pool.validate().expect("consistent");
    Outcome { requests, failures, blocks, blocks_possible: possible, cma_free_share, cma_taken }
}

/// Unmovable requests of orders 2 and 3 with never less than 5 % free; some are held for a while.
fn high_orders(load: &mut Load) -> ([u32; 2], [u32; 2]) {
    let (mut requests, mut failures) = ([0; 2], [0; 2]);
    let mut held: Vec<Frames> = Vec::new();
    for round in 0..4000 {
        load.churn(0.055, 0.08);
        let which = round % 2;
        // Two or three.
        let order = Order::new(if which == 0 { 2 } else { 3 }).expect("small");
        requests[which] += 1;
        match load.pool.alloc(order, Gfp::UNMOVABLE) {
            Ok(frames) => held.push(frames),
            Err(_) => failures[which] += 1,
        }
        if held.len() > 100 {
            let frames = held.swap_remove(load.rng.below(held.len()));
            load.pool.free(frames).expect("of this pool");
        }
    }
    held.into_iter().for_each(|frames| load.pool.free(frames).expect("of this pool"));
    (requests, failures)
}

pub(crate) fn run(figures: &mut Figures) {
    for movable in [true, false] {
        println!(
            "\nclaim, frames of both users {}:",
            if movable { "movable" } else { "unmovable" }
        );
        let outcome = measure(movable);
        let share = |part: u32, of: u32| 100.0 * f64::from(part) / f64::from(of.max(1));
        let failed = [0, 1].map(|i| share(outcome.failures[i], outcome.requests[i]));
        let blocks = share(outcome.blocks, outcome.blocks_possible);
        let cma_free = outcome.cma_free_share * 100.0;
        let taken = f64::from(u8::from(outcome.cma_taken));
        println!(
            "  order-2 requests failed {:.2} %, order-3 {:.2} %; blocks {} of {}; CMA free at the \
             first failure {cma_free:.2} %; whole area taken: {}",
            failed[0], failed[1], outcome.blocks, outcome.blocks_possible, outcome.cma_taken
        );
        // Without movability there is no goal, only what happens.
        if movable {
            figures.at_most("order2-failures", failed[0], "%", 0.0);
            figures.at_most("order3-failures", failed[1], "%", 0.0);
            figures.at_least("order9-after-compaction", blocks, "%", 98.0);
            figures.at_most("cma-free-at-first-failure", cma_free, "%", 1.0);
            figures.at_least("cma-taken-whole", taken, "of-1", 1.0);
        } else {
            figures.note("order2-failures-unmovable", failed[0], "%");
            figures.note("order3-failures-unmovable", failed[1], "%");
            figures.note("order9-after-compaction-unmovable", blocks, "%");
            figures.note("cma-free-at-first-failure-unmovable", cma_free, "%");
            figures.note("cma-taken-whole-unmovable", taken, "of-1");
        }
    }
}
