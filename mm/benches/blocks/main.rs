// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of compaction on the host, compared with what the kernel and the hardware allow:
//! reading the block map, a pass with nothing to do, and making blocks huge.
//!
//! `cargo bench -p ballast-mm --bench blocks`; closes with lines `figure <name> <value> <unit> goal
//! <goal> met|short`. Medians of several rounds; only ratios carry over to other machines.
//!
//! - `move_into_place.rs`: UFFDIO_MOVE of a whole block

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mm::backing::{BackingKind, Discarded};
use mm::blocks::guest_side::GuestSide;
use mm::blocks::map::{BlockMap, Holdings};
use mm::blocks::mask::PageMask;
use mm::blocks::pass::Pass;
use mm::blocks::policy::{Goals, PassLimits};
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::layout::MemoryLayout;
use mm::units::{BLOCK_BYTES, BlockId, Bytes, GuestRange, Pages};
use vm_memory::{Bytes as _, GuestAddress};

mod move_into_place;

const ROUNDS: usize = 7;
const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    // `cargo test --benches` runs bench binaries with this flag: nothing to test here.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    for (name, kind) in [("4k", BackingKind::Small), ("huge", BackingKind::Thp)] {
        map_rate(name, kind);
    }
    idle_pass();
    making_huge();
}

fn guest_ram(mib: u64, kind: BackingKind) -> GuestRam {
    let layout = MemoryLayout::new(Bytes(mib << 20), Bytes(0)).expect("a valid size");
    let ram = GuestRam::new(layout, kind).expect("address space");
    for &range in ram.layout().ram() {
        ram.populate(range).expect("memory");
    }
    ram
}

/// Median time of `work`.
fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

fn figure(name: &str, value: f64, unit: &str, goal: f64, met: bool) {
    println!("figure {name} {value:.3} {unit} goal {goal} {}", if met { "met" } else { "short" });
}

/// Reading the map, beside a bare walk by PAGEMAP_SCAN.
fn map_rate(name: &str, kind: BackingKind) {
    let ram = guest_ram(1024, kind);
    let held = Holdings::default();
    let map = median(|| {
        black_box(BlockMap::read(&ram, &held).expect("a map"));
    });
    let bare = median(|| {
        for region in ram.regions() {
            let mut count = |run, _| {
                black_box(run);
            };
            region.backing().walk(region.host(), &mut count).expect("a walk");
        }
    });
    let rate = |time: Duration| 1.0 / time.as_secs_f64();
    println!("map of {name}: {:.0} GiB/s, bare {:.0} GiB/s", rate(map), rate(bare));
    let ratio = bare.as_secs_f64() / map.as_secs_f64();
    figure(&format!("map_{name}_of_bare_scan"), ratio, "ratio", 0.5, ratio >= 0.5);
}

/// A guest without a balloon.
struct Alone;

impl GuestSide for Alone {
    fn holdings(&self) -> Holdings {
        Holdings::default()
    }

    fn discard_ballooned(&self, _: BlockId, _: &PageMask) -> Result<Discarded, GuestRamError> {
        Ok(Discarded::default())
    }

    fn has_holes(&self, _: BlockId) -> bool {
        false
    }

    fn keep_holes(&self, _: BlockId) -> Result<bool, GuestRamError> {
        Ok(false)
    }

    fn evacuate(&self, _: &[BlockId], _: bool, _: Duration, _: &AtomicBool) -> Option<Vec<bool>> {
        None
    }

    fn ask_free(&self, _: Duration) {}

    fn lent(&self) -> Pages {
        Pages(0)
    }

    fn take_back(&self, _: Pages, _: Duration, _: &AtomicBool) -> Pages {
        Pages(0)
    }

    fn gather(&self, _: u32, _: Duration, _: &AtomicBool, _: &mut dyn FnMut()) -> u32 {
        0
    }

    fn settle(&self, _: Pages) {}
}

/// CPU time of a pass over 4 GiB in huge pages, in which there is nothing to do.
fn idle_pass() {
    let ram = guest_ram(4096, BackingKind::Thp);
    let pass = Pass::new(&ram, &Alone, Goals::all(false), PassLimits::UNLIMITED);
    let mut planned = 0;
    let took = median(|| {
        let report = pass.run(&AtomicBool::new(false), &mut |_, _| {}).expect("a pass");
        planned = report.planned;
    });
    if planned > 0 {
        println!("this host gave small pages: the pass had {planned} steps to take");
    }
    let millis = took.as_secs_f64() * 1e3;
    figure("idle_pass_4gib", millis, "ms", 2.0, millis < 2.0 && planned == 0);
}

/// Making blocks huge: by MADV_COLLAPSE, and by UFFDIO_MOVE.
fn making_huge() {
    let blocks = 128;
    let ram = guest_ram(blocks * 2, BackingKind::Thp);
    let all = ram.layout().ram()[0];
    let host = ram.regions()[0].host();
    let small = || {
        ram.discard(&[all]).expect("discard");
        ram.allow_huge(all, false).expect("advice");
        for page in 0..all.pages().0 {
            ram.memory().write_obj(page | 1, GuestAddress(page << 12)).expect("RAM");
        }
        ram.allow_huge(all, true).expect("advice");
    };
    let timed = |work: &mut dyn FnMut()| {
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                small();
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        host.len() as f64 / GIB / times[ROUNDS / 2]
    };
    let whole = timed(&mut || ram.collapse(all).expect("huge pages"));
    let single = timed(&mut || {
        for block in all.whole_blocks() {
            let range: GuestRange = block.checked_range().expect("RAM");
            ram.collapse(range).expect("huge pages");
        }
    });
    let memcpy = memcpy_rate();
    println!(
        "collapse in one call {whole:.2} GiB/s, block by block {single:.2}; memcpy {memcpy:.2}"
    );
    figure("collapse_gib_per_s", whole.max(single), "GiB/s", 2.9, whole.max(single) >= 2.9);
    let mut huge = 0;
    let mover = move_into_place::Mover::new(host);
    match mover {
        Err(error) => println!("cannot open a userfaultfd: {error}"),
        Ok(mover) => {
            let rate = timed(&mut || mover.make_huge().expect("moves"));
            huge += ram.residency().ok().and_then(|r| r.huge).map_or(0, |b| b.0);
            println!(
                "copy and UFFDIO_MOVE {rate:.2} GiB/s, {} of {} blocks huge afterwards",
                huge / BLOCK_BYTES as u64,
                blocks
            );
            let share = rate / memcpy;
            let worked = huge == host.len() as u64;
            figure("move_into_place_of_memcpy", share, "ratio", 0.5, share >= 0.5 && worked);
        }
    }
}

/// GiB/s of a copy between two touched buffers.
fn memcpy_rate() -> f64 {
    let from = vec![1u8; 256 << 20];
    let mut to = vec![2u8; 256 << 20];
    let time = median(|| {
        to.copy_from_slice(black_box(&from));
        black_box(&to);
    });
    from.len() as f64 / GIB / time.as_secs_f64()
}
