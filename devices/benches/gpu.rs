// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the GPU costs: a flush of a whole frame that somebody looks at, and pages that move, each
//! beside a plain copy of as many bytes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use devices::display::{Rect, ScanoutId, Size};
use devices::gpu::driver::{BUFFERS, Driver, RAM, single_pages};
use devices::gpu::{Limits, ok};

const FULL_HD: Size = Size::new(1920, 1080);
const PAGE: u64 = 4096;

/// A guest whose blob 1, of single pages that are not neighbours, is on scanout 0.
fn driver() -> Driver {
    let mut driver = Driver::new(Limits::default());
    let pages = FULL_HD.bytes().div_ceil(PAGE);
    // Backwards, so that no two make a run.
    let entries = single_pages((0..pages).rev().map(|n| BUFFERS / PAGE + n));
    assert_eq!(driver.create_guest_blob(1, FULL_HD.bytes(), &entries), ok::NODATA);
    assert_eq!(driver.set_scanout_blob(0, 1, FULL_HD), ok::NODATA);
    let frame: Vec<u8> = (0..pages * PAGE).map(|n| (n >> 3) as u8).collect();
    driver.write(BUFFERS, &frame);
    driver
}

fn flush(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame-1920x1080");
    group.throughput(Throughput::Bytes(FULL_HD.bytes()));
    let len = usize::try_from(FULL_HD.bytes()).expect("64 bits");

    let (from, mut to) = (vec![1u8; len], vec![0u8; len]);
    group.bench_function("memcpy", |b| b.iter(|| to.copy_from_slice(black_box(&from))));

    let mut driver = driver();
    group.bench_function("flush-unwatched", |b| {
        b.iter(|| assert_eq!(driver.flush(1, Rect::whole(FULL_HD)), ok::NODATA));
    });
    let _viewer = driver.frames.view(ScanoutId::new(0).expect("a scanout"));
    group.bench_function("flush-watched", |b| {
        b.iter(|| assert_eq!(driver.flush(1, Rect::whole(FULL_HD)), ok::NODATA));
    });
    group.finish();
}

fn migrate(c: &mut Criterion) {
    for batch in [1u64, 64, 512] {
        let mut group = c.benchmark_group(format!("migrate-{batch}"));
        group.throughput(Throughput::Elements(batch));
        let mut driver = driver();
        // There and back between the blob's own pages and as many others.
        let home = |n: u64| BUFFERS + (FULL_HD.bytes().div_ceil(PAGE) - 1 - n) * PAGE;
        let away = |n: u64| RAM - (n + 1) * PAGE;
        let moves = |to: &dyn Fn(u64) -> u64| (0..batch).map(|n| (n * PAGE, to(n))).collect();
        let ways: [Vec<(u64, u64)>; 2] = [moves(&away), moves(&home)];
        let mut turn = 0;
        group.bench_function("pages", |b| {
            b.iter(|| {
                assert_eq!(driver.migrate(1, &ways[turn % 2]), ok::NODATA);
                turn += 1;
            });
        });
        group.finish();
    }
}

criterion_group!(benches, flush, migrate);
criterion_main!(benches);
