// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Speed and overhead, beside mimalloc, memcpy and the bare codecs.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use mimalloc::MiMalloc;
use mm::frames::{FramePool, Gfp, Order};
use mm::store::{Codec, Key, Lz4, Store, StoreConfig, Zstd};
use mm::units::{BLOCK_BYTES, PAGE_BYTES};
use mm::zsmalloc::{Handle, ZsConfig, ZsPool};

use crate::Figures;
use crate::common::{Buffers, Rng, compressed_size, page, pool};

const ROUNDS: usize = 9;

/// This thread's processor time: unlike the wall clock, not disturbed by other load on the machine
/// does. Waiting for a lock counts as long as it spins.
#[derive(Clone, Copy)]
struct Cpu(Duration);

impl Cpu {
    fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Self(time.try_into().unwrap_or_default())
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of two measurements in alternating rounds.
fn alternate(rounds: usize, mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> (f64, f64) {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        of_a.push(a());
        of_b.push(b());
    }
    (median(of_a), median(of_b))
}

fn nanos(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

/// Nanoseconds for one operation with `threads` threads doing it at once.
fn timed(threads: usize, count: usize, op: impl Fn(usize) + Sync) -> f64 {
    let start = Barrier::new(threads);
    let times = std::thread::scope(|s| {
        let spawn = |t| {
            let (start, op) = (&start, &op);
            s.spawn(move || {
                op(t);
                start.wait();
                let begin = Cpu::now();
                for _ in 0..count {
                    op(t);
                }
                begin.elapsed()
            })
        };
        let handles: Vec<_> = (0..threads).map(spawn).collect();
        handles.into_iter().map(|h| h.join().expect("no panic")).collect::<Vec<_>>()
    });
    nanos(times.into_iter().max().unwrap_or_default(), count)
}

fn mimalloc(layout: Layout) -> *mut u8 {
    // SAFETY: no layout here has size zero.
    let memory = unsafe { MiMalloc.alloc(layout) };
    assert!(!memory.is_null(), "mimalloc is out of memory");
    memory
}

fn mifree(memory: *mut u8, layout: Layout) {
    // SAFETY: every pointer here comes from `mimalloc` with the same layout, and is freed once.
    unsafe { MiMalloc.dealloc(memory, layout) }
}

fn bytes(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a small size")
}

/// Order-0 allocate/free pairs: one at a time, and 32 at a time.
pub(crate) fn frames(figures: &mut Figures) {
    let pool = pool(64, 0);
    println!("frames: metadata {} B a frame", FramePool::metadata_bytes_per_frame());
    figures.at_most("frame-metadata", FramePool::metadata_bytes_per_frame() as f64, "bytes", 32.0);
    let layout = bytes(PAGE_BYTES);
    for threads in [1, 2] {
        let count = 2_000_000;
        let (ours, theirs) = alternate(
            ROUNDS,
            || {
                timed(threads, count, |_| {
                    let frames = pool.alloc(Order::ZERO, Gfp::UNMOVABLE).expect("plenty");
                    black_box(&frames);
                    pool.free(frames).expect("of this pool");
                })
            },
            || {
                timed(threads, count, |_| {
                    let memory = black_box(mimalloc(layout));
                    mifree(memory, layout);
                })
            },
        );
        println!("order-0 pair, {threads} threads: {ours:.1} ns, mimalloc {theirs:.1} ns");
        figures.at_most(&format!("order0-pair-{threads}t"), ours / theirs, "x-mimalloc", 2.0);
        let count = 50_000;
        let (ours, theirs) = alternate(
            ROUNDS,
            || {
                timed(threads, count, |_| {
                    let held: [_; 32] = std::array::from_fn(|_| {
                        pool.alloc(Order::ZERO, Gfp::UNMOVABLE).expect("plenty")
                    });
                    held.into_iter().for_each(|f| pool.free(f).expect("of this pool"));
                }) / 32.0
            },
            || {
                timed(threads, count, |_| {
                    let held: [_; 32] = std::array::from_fn(|_| mimalloc(layout));
                    black_box(held).into_iter().for_each(|m| mifree(m, layout));
                }) / 32.0
            },
        );
        println!("  the same, 32 at a time: {ours:.1} ns, mimalloc {theirs:.1} ns");
    }
}

/// Bytes a second that compaction moves, beside memcpy between the same kind of places.
pub(crate) fn compaction(figures: &mut Figures) {
    const BLOCKS: usize = 128;
    let pool = pool(BLOCKS, 0);
    let frames = pool.frame_count();
    let gib = |bytes: f64, time: Duration| bytes / time.as_secs_f64() / f64::from(1 << 30);
    let buffers = Buffers::new(&pool);
    let scratch = {
        let mut scratch = vec![1u8; BLOCKS * BLOCK_BYTES];
        scratch.fill(2);
        std::cell::RefCell::new(scratch)
    };
    let (moved, copied) = alternate(
        5,
        || {
            let held: Vec<u32> = (0..frames)
                .take_while(|&place| buffers.alloc(place, Gfp::MOVABLE).is_ok())
                .collect();
            let (drop, keep): (Vec<_>, Vec<_>) = held.into_iter().partition(|p| p % 2 == 0);
            drop.into_iter().for_each(|place| buffers.free(place));
            pool.drain_caches();
            let begin = Cpu::now();
            let report = pool.compact();
            let rate = gib(report.moved as f64 * PAGE_BYTES as f64, begin.elapsed());
            assert!(report.moved > u64::from(frames) / 8, "{report:?}");
            keep.into_iter().for_each(|place| buffers.free(place));
            rate
        },
        || {
            // Every other frame of the lower half into every other frame of the upper half.
            let mut scratch = scratch.borrow_mut();
            let (low, high) = scratch.split_at_mut(BLOCKS * BLOCK_BYTES / 2);
            let begin = Cpu::now();
            let mut count = 0;
            let pairs = high.chunks_exact_mut(PAGE_BYTES).rev().zip(low.chunks_exact(PAGE_BYTES));
            for (to, from) in pairs.step_by(2) {
                to.copy_from_slice(from);
                count += 1;
            }
            black_box(&mut *scratch);
            gib(f64::from(count) * PAGE_BYTES as f64, begin.elapsed())
        },
    );
    println!("compaction moves {moved:.2} GiB/s, memcpy {copied:.2} GiB/s");
    figures.at_least("compaction-rate", moved / copied, "x-memcpy", 0.6);
}

/// A live set in which a random object is replaced by one of another size, again and again.
struct Churn {
    sizes: Vec<usize>,
    picks: Vec<u32>,
}

const LIVE: usize = 40_000;

impl Churn {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let sizes = (0..LIVE * 4).map(|_| compressed_size(&mut rng)).collect();
        // Indices of the live set.
        let picks = (0..LIVE * 3).map(|_| rng.below(LIVE) as u32).collect();
        Self { sizes, picks }
    }

    fn replacements(&self) -> impl Iterator<Item = (usize, usize)> {
        self.picks.iter().map(|&p| p as usize).zip(self.sizes[LIVE..].iter().copied())
    }

    fn zs(&self, pool: &ZsPool) -> f64 {
        let alloc = |size| pool.alloc(size).expect("plenty");
        let mut live: Vec<Handle> = self.sizes[..LIVE].iter().map(|&size| alloc(size)).collect();
        let begin = Cpu::now();
        for (pick, size) in self.replacements() {
            let old = std::mem::replace(&mut live[pick], alloc(size));
            pool.free(old).expect("once");
        }
        let time = nanos(begin.elapsed(), self.picks.len());
        live.into_iter().for_each(|handle| pool.free(handle).expect("once"));
        time
    }

    fn mimalloc(&self) -> f64 {
        let alloc = |size| (mimalloc(bytes(size)), size);
        let mut live: Vec<_> = self.sizes[..LIVE].iter().map(|&size| alloc(size)).collect();
        let begin = Cpu::now();
        for (pick, size) in self.replacements() {
            let (old, old_size) = std::mem::replace(&mut live[pick], alloc(size));
            mifree(old, bytes(old_size));
        }
        let time = nanos(begin.elapsed(), self.picks.len());
        live.into_iter().for_each(|(memory, size)| mifree(memory, bytes(size)));
        time
    }
}

/// The worst thread's time with `threads` threads, each with a live set of its own.
fn churn(threads: usize, one: impl Fn(&Churn) -> f64 + Sync) -> f64 {
    std::thread::scope(|s| {
        let spawn = |t| {
            let one = &one;
            s.spawn(move || one(&Churn::new(77 + t as u64)))
        };
        let handles: Vec<_> = (0..threads).map(spawn).collect();
        handles.into_iter().map(|h| h.join().expect("no panic")).fold(0.0, f64::max)
    })
}

/// Resident bytes of this process.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0.0);
    pages * PAGE_BYTES as f64
}

/// zsmalloc beside mimalloc: time for replacing objects of mixed sizes, and memory.
pub(crate) fn zsmalloc(figures: &mut Figures) {
    for threads in [1, 2] {
        let frames = pool(200, 0);
        let zs = ZsPool::new(&frames, ZsConfig::default()).expect("a pool");
        let (ours, theirs) =
            alternate(ROUNDS, || churn(threads, |c| c.zs(&zs)), || churn(threads, Churn::mimalloc));
        println!("zsmalloc replace, {threads} threads: {ours:.1} ns, mimalloc {theirs:.1} ns");
        figures.at_most(&format!("zsmalloc-replace-{threads}t"), ours / theirs, "x-mimalloc", 2.0);
    }
    memory(figures);
}

/// A zram-like mix of sizes, and which of them stay: two thirds, at random.
fn mix() -> (Vec<usize>, Vec<bool>) {
    let mut rng = Rng(2024);
    let sizes: Vec<_> = (0..200_000).map(|_| compressed_size(&mut rng)).collect();
    let keep = sizes.iter().map(|_| rng.below(3) != 0).collect();
    (sizes, keep)
}

/// The argument with which this program measures [`mimalloc_memory`] alone.
pub(crate) const MIMALLOC_MEMORY: &str = "mimalloc-memory";

/// Resident bytes for the same objects in mimalloc; right only in a fresh process.
pub(crate) fn mimalloc_memory() -> f64 {
    let (sizes, keep) = mix();
    let mut blocks = Vec::with_capacity(sizes.len());
    let begin = resident();
    for &size in &sizes {
        let memory = mimalloc(bytes(size));
        // SAFETY: just allocated with this size.
        unsafe { memory.write_bytes(1, size) };
        blocks.push(memory);
    }
    for ((&memory, &size), _) in blocks.iter().zip(&sizes).zip(&keep).filter(|(_, keep)| !**keep) {
        mifree(memory, bytes(size));
    }
    resident() - begin
}

fn mimalloc_memory_elsewhere() -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(program).arg(MIMALLOC_MEMORY).output();
    let output = output.expect("runs again");
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(f64::NAN)
}

/// Memory after a third of a zram-like mix was freed at random, beside the sum of object sizes.
fn memory(figures: &mut Figures) {
    let frames = pool(200, 0);
    let zs = ZsPool::new(&frames, ZsConfig::default()).expect("a pool");
    let (sizes, keep) = mix();
    let handles: Vec<_> = sizes.iter().map(|&size| zs.alloc(size).expect("plenty")).collect();
    for (handle, _) in handles.iter().zip(&keep).filter(|(_, keep)| !**keep) {
        zs.free(*handle).expect("once");
    }
    let wanted: usize =
        sizes.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(size, _)| size).sum();
    let wanted = wanted as f64;
    let before = zs.stats();
    zs.compact();
    let after = zs.stats();
    let taken = |frames: u64| frames as f64 * PAGE_BYTES as f64;
    let total = taken(after.frames) + after.metadata_bytes as f64;

    let theirs = mimalloc_memory_elsewhere();

    println!(
        "zsmalloc memory for {:.1} MiB of objects: before compaction {:.3}x, after {:.3}x, with \
         tables {:.3}x; mimalloc {:.3}x (resident)",
        wanted / f64::from(1 << 20),
        taken(before.frames) / wanted,
        taken(after.frames) / wanted,
        total / wanted,
        theirs / wanted
    );
    figures.at_most("zsmalloc-memory", total / wanted, "x-objects", 1.05);
}

/// put and get of the store beside the same codec alone.
pub(crate) fn store(figures: &mut Figures) {
    const PAGES: u32 = 4096;
    let mut rng = Rng(99);
    let pages: Vec<_> = (0..PAGES).map(|_| page(&mut rng)).collect();
    let codecs: [Box<dyn Fn() -> Box<dyn Codec>>; 2] =
        [Box::new(|| Box::new(Lz4)), Box::new(|| Box::new(Zstd::default()))];
    for make in codecs {
        let frames: Arc<FramePool> = pool(32, 4);
        let config = StoreConfig { capacity: PAGES, zs: ZsConfig::default() };
        let store = Store::new(&frames, make(), config).expect("a store");
        let codec = make();
        let mut worker = codec.worker(PAGE_BYTES).expect("a worker");
        let mut packed: Vec<Vec<u8>> = vec![Vec::with_capacity(PAGE_BYTES); pages.len()];
        let mut out = [0; PAGE_BYTES];
        let mut to = [0; PAGE_BYTES];
        let count = pages.len();
        let (ours, bare) = alternate(
            7,
            || {
                let begin = Cpu::now();
                for (key, page) in (0..).map(Key).zip(&pages) {
                    store.put(key, page).expect("plenty");
                }
                for key in (0..PAGES).map(Key) {
                    store.get(key, &mut to).expect("stored");
                    black_box(&to);
                }
                nanos(begin.elapsed(), count)
            },
            || {
                // The codec alone, into buffers that exist: what it gives must be kept somewhere,
                // so that it can be restored, but that copy is not counted.
                let mut time = Duration::ZERO;
                for (page, keep) in pages.iter().zip(&mut packed) {
                    let begin = Cpu::now();
                    let data = black_box(worker.compress(page));
                    time += begin.elapsed();
                    keep.clear();
                    keep.extend_from_slice(data.unwrap_or(page));
                }
                for (page, data) in pages.iter().zip(&packed) {
                    let begin = Cpu::now();
                    if data.len() < PAGE_BYTES {
                        worker.decompress(data, &mut out).expect("its own");
                    } else {
                        out = *page;
                    }
                    black_box(&out);
                    time += begin.elapsed();
                }
                nanos(time, count)
            },
        );
        let name = codec.name();
        let stat = store.mm_stat();
        println!(
            "store with {name}: put+get {ours:.0} ns a page, codec alone {bare:.0} ns; \
             {:.2}x compressed, {:.3}x of that in frames, tables {} KiB\n  mm_stat {stat}",
            stat.orig_data_size as f64 / stat.compr_data_size as f64,
            stat.mem_used_total as f64 / stat.compr_data_size as f64,
            store.metadata_bytes() / 1024,
        );
        figures.at_least(&format!("store-{name}"), bare / ours, "x-codec", 0.85);
    }
}
