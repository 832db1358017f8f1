// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Criterion benches of single operations: what to look at while making one of them faster.
//! `cargo bench -p ballast-mm --bench pool`.

#![allow(missing_docs, reason = "criterion's macros make a public function without a text")]

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mm::frames::{Gfp, Order};
use mm::store::{Key, Lz4, Store, StoreConfig, Zstd};
use mm::units::PAGE_BYTES;
use mm::zsmalloc::{ZsConfig, ZsPool};

use common::{Buffers, Rng, compressed_size, page, pool};

fn frames(c: &mut Criterion) {
    let pool = pool(32, 0);
    let mut group = c.benchmark_group("frames");
    for order in [0, 3, 9] {
        let order = Order::new(order).expect("small");
        group.bench_function(format!("pair, order {order}"), |b| {
            b.iter(|| {
                let frames = pool.alloc(order, Gfp::UNMOVABLE).expect("plenty");
                pool.free(frames).expect("of this pool");
            });
        });
    }
    let buffers = Buffers::new(&pool);
    group.bench_function("pair, movable", |b| {
        b.iter(|| {
            buffers.alloc(0, Gfp::MOVABLE).expect("plenty");
            buffers.free(0);
        });
    });
    group.finish();
}

fn compaction(c: &mut Criterion) {
    let pool = pool(16, 0);
    let buffers = Buffers::new(&pool);
    let mut group = c.benchmark_group("compaction");
    let half = u64::from(pool.frame_count() / 4) * PAGE_BYTES as u64;
    group.throughput(Throughput::Bytes(half)).sample_size(20);
    group.bench_function("every other frame of 32 MiB", |b| {
        b.iter_batched(
            || {
                let held: Vec<u32> = (0..pool.frame_count())
                    .take_while(|&p| buffers.alloc(p, Gfp::MOVABLE).is_ok())
                    .collect();
                held.iter().filter(|p| *p % 2 == 0).for_each(|p| buffers.free(*p));
                pool.drain_caches();
                held
            },
            |held| {
                pool.compact();
                held.iter().filter(|p| *p % 2 != 0).for_each(|p| buffers.free(*p));
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("a CMA-like run of 2 MiB", |b| {
        b.iter(|| {
            let run = pool.alloc_contig(512, 512).expect("plenty");
            pool.free_contig(run).expect("of this pool");
        });
    });
    group.finish();
}

fn zsmalloc(c: &mut Criterion) {
    let frames = pool(64, 0);
    let zs = ZsPool::new(&frames, ZsConfig::default()).expect("a pool");
    let mut rng = Rng(5);
    let mut live: Vec<_> =
        (0..20_000).map(|_| zs.alloc(compressed_size(&mut rng)).expect("plenty")).collect();
    let mut group = c.benchmark_group("zsmalloc");
    group.bench_function("replace", |b| {
        b.iter(|| {
            let pick = rng.below(live.len());
            zs.free(live[pick]).expect("once");
            live[pick] = zs.alloc(compressed_size(&mut rng)).expect("plenty");
        });
    });
    group.bench_function("map", |b| {
        b.iter(|| zs.map(live[rng.below(live.len())]).expect("live").slices().0[0]);
    });
    group.finish();
}

fn store(c: &mut Criterion) {
    let mut rng = Rng(6);
    let pages: Vec<_> = (0..256).map(|_| page(&mut rng)).collect();
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    for (name, codec) in
        [("lz4", Box::new(Lz4) as Box<dyn mm::store::Codec>), ("zstd", Box::new(Zstd::default()))]
    {
        let frames = pool(8, 0);
        let config = StoreConfig { capacity: 256, zs: ZsConfig::default() };
        let store = Store::new(&frames, codec, config).expect("a store");
        let mut keys = (0..256).cycle();
        group.bench_function(format!("{name} put"), |b| {
            b.iter(|| {
                let key = keys.next().unwrap_or(0);
                store.put(Key(key), &pages[key as usize]).expect("plenty");
            });
        });
        let mut to = [0; PAGE_BYTES];
        pages.iter().zip(0..).for_each(|(p, k)| store.put(Key(k), p).expect("plenty"));
        group.bench_function(format!("{name} get"), |b| {
            b.iter(|| store.get(Key(keys.next().unwrap_or(0)), &mut to).expect("stored"));
        });
    }
    group.finish();
}

criterion_group!(benches, frames, compaction, zsmalloc, store);
criterion_main!(benches);
