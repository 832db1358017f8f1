// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the GPU costs: a flush of a whole watched frame, and pages that move, each
//! beside a plain copy of as many bytes.
//!
//! `cargo bench -p ballast-devices --features test-utils --bench gpu`; prints lines `figure <name>
//! <value> <unit> goal <goal> met|short`. Medians of rounds in which everything is measured in
//! turn, so that a change in the machine's load falls on all of it; only ratios carry over.

use std::hint::black_box;
use std::time::Instant;

use devices::display::{Rect, ScanoutId, Size};
use devices::gpu::mock::{BUFFERS, Driver, RAM, Setup, single_pages};
use devices::gpu::ok;

const FULL_HD: Size = Size::new(1920, 1080);
const PAGE: u64 = 4096;
const GIB: f64 = (1u64 << 30) as f64;
const ROUNDS: usize = 21;
/// Pages of a migration command.
const BATCHES: [u64; 3] = [1, 64, 512];
/// Pages moved in a round, for every batch size.
const MOVED: u64 = 2048;

/// A guest whose blob 1, of single pages that are not neighbours, is on scanout 0.
fn driver() -> Driver {
    let mut driver = Driver::new(Setup::default());
    let pages = FULL_HD.bytes().div_ceil(PAGE);
    // Backwards, so that no two make a run.
    let entries = single_pages((0..pages).rev().map(|n| BUFFERS / PAGE + n));
    assert_eq!(driver.create_guest_blob(1, FULL_HD.bytes(), &entries), ok::NODATA);
    assert_eq!(driver.set_scanout_blob(0, 1, FULL_HD), ok::NODATA);
    let frame: Vec<u8> = (0..pages * PAGE).map(|n| (n >> 3) as u8).collect();
    driver.write(BUFFERS, &frame);
    driver
}

/// Seconds that `times` calls of `work` take, a call.
fn seconds(times: u64, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..times).for_each(|_| work());
    start.elapsed().as_secs_f64() / times as f64
}

/// Seconds a call, by what is called.
#[derive(Default)]
struct Times {
    memcpy: Vec<f64>,
    unwatched: Vec<f64>,
    watched: Vec<f64>,
    migrate: [Vec<f64>; BATCHES.len()],
}

fn main() {
    // `cargo test --benches` runs bench binaries with this flag: nothing to test here.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let mut times = Times::default();
    let mut bed = Bed::new();
    for _ in 0..ROUNDS {
        bed.round(&mut times);
    }
    report(times);
}

/// What is measured with.
struct Bed {
    from: Vec<u8>,
    to: Vec<u8>,
    driver: Driver,
    turn: usize,
}

impl Bed {
    fn new() -> Self {
        let len = usize::try_from(FULL_HD.bytes()).expect("64 bits");
        Self { from: vec![1; len], to: vec![0; len], driver: driver(), turn: 0 }
    }

    fn round(&mut self, times: &mut Times) {
        let Self { from, to, driver, turn } = self;
        times.memcpy.push(seconds(5, || to.copy_from_slice(black_box(from))));
        let whole = Rect::whole(FULL_HD);
        let mut flush = |times| seconds(times, || assert_eq!(driver.flush(1, whole), ok::NODATA));
        times.unwatched.push(flush(100));
        let viewer = driver.frames.view(ScanoutId::new(0).expect("a scanout"));
        let mut flush = |times| seconds(times, || assert_eq!(driver.flush(1, whole), ok::NODATA));
        // The first one after a while makes the frame.
        flush(1);
        times.watched.push(flush(5));
        drop(viewer);

        for (batch, times) in BATCHES.into_iter().zip(&mut times.migrate) {
            // There and back between the blob's own pages and as many others.
            let home = |n: u64| BUFFERS + (FULL_HD.bytes().div_ceil(PAGE) - 1 - n) * PAGE;
            let away = |n: u64| RAM - (n + 1) * PAGE;
            let moves = |to: &dyn Fn(u64) -> u64| (0..batch).map(|n| (n * PAGE, to(n))).collect();
            let ways: [Vec<(u64, u64)>; 2] = [moves(&away), moves(&home)];
            times.push(seconds(MOVED / batch, || {
                assert_eq!(driver.migrate(1, &ways[*turn % 2]), ok::NODATA);
                *turn += 1;
            }));
        }
    }
}

fn report(times: Times) {
    let memcpy = FULL_HD.bytes() as f64 / median(times.memcpy) / GIB;
    let flush = FULL_HD.bytes() as f64 / median(times.watched) / GIB;
    figure("memcpy-1920x1080", memcpy, "GiB/s", None);
    figure("flush-watched", flush, "GiB/s", Some(memcpy / 2.0));
    figure("flush-unwatched", median(times.unwatched) * 1e6, "us", None);
    for (batch, times) in BATCHES.into_iter().zip(times.migrate) {
        let pages = batch as f64 / median(times);
        let share = pages * PAGE as f64 / GIB / memcpy * 100.0;
        figure(&format!("migrate-by-{batch}"), pages, "pages/s", None);
        figure(&format!("migrate-by-{batch}-of-memcpy"), share, "%", None);
    }
}

fn figure(name: &str, value: f64, unit: &str, at_least: Option<f64>) {
    let goal = at_least.map_or_else(|| "-".to_owned(), |limit| format!(">={limit:.3}"));
    let met = if at_least.is_none_or(|limit| value >= limit) { "met" } else { "short" };
    println!("figure gpu.device.{name} {value:.3} {unit} goal {goal} {met}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
