// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The native part of `cargo xtask bench park`: memory of real programs is parked and touched, on
//! this host and without a guest. Closes with lines of figures.
//!
//! The contents are executables and libraries of the host, and zero pages, as idle programs have
//! both; printed beside each figure is its physical limit, measured in the same run.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use mm::backing::BackingKind;
use mm::guest_ram::GuestRam;
use mm::layout::MemoryLayout;
use mm::paging::{Paging, PagingConfig, ParkRequest};
use mm::store::Lz4;
use mm::sys::mapping::{Mapping, MappingSource};
use mm::sys::userfault::Userfault;
use mm::units::{BLOCK_BYTES, BLOCK_SIZE, Bytes, HostRange, PAGE_BYTES};
use vm_memory::{Bytes as _, GuestAddress};

const MIB: u64 = 1 << 20;
const GUEST: u64 = 192 * MIB;
/// Of each sixteen pages two are zero: what idle guests were found to have.
const ZERO_OF_16: usize = 2;
const ROUNDS: u32 = 5;
/// Where what is sought is less than the noise: turns, and passes over the memory in each.
const TURNS: usize = 18;
const PASSES: usize = 4;

/// Processor time of this thread: what other work on the machine hardly changes.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).expect("a time")
}

/// Bytes of executables and libraries, as much as is wanted, or all that there are.
fn contents(wanted: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(wanted);
    let mut folders = vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/lib")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if data.len() >= wanted {
                data.truncate(wanted);
                return data;
            }
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(meta) if meta.is_file() && meta.len() > 64 << 10 => read(&path, &mut data),
                _ => {}
            }
        }
    }
    data
}

fn read(path: &Path, data: &mut Vec<u8>) {
    if let Ok(bytes) = fs::read(path) {
        for page in bytes.as_chunks::<PAGE_BYTES>().0 {
            if data.len() / PAGE_BYTES % 16 < ZERO_OF_16 {
                data.extend([0; PAGE_BYTES]);
            }
            data.extend(page);
        }
    }
}

struct Parked {
    ram: Arc<GuestRam>,
    paging: Paging,
}

/// A guest's memory with `data` in it.
fn guest(data: &[u8]) -> Arc<GuestRam> {
    let layout = MemoryLayout::new(Bytes(GUEST), Bytes(0)).expect("a layout");
    let ram = Arc::new(GuestRam::new(layout, BackingKind::Thp).expect("memory"));
    ram.memory().write_slice(data, GuestAddress(0)).expect("memory");
    ram
}

fn start(ram: &Arc<GuestRam>) -> Paging {
    let config = PagingConfig {
        pool_limit: Bytes(GUEST),
        max_mappings: 1 << 15,
        codec: Box::new(Lz4),
        second_codec: None,
        sources: Vec::new(),
        host: None,
    };
    let paging = Paging::start(Arc::clone(ram), config, Box::new(|_| ()));
    paging.expect("userfaultfd: run as root")
}

impl Parked {
    fn new(data: &[u8]) -> Self {
        let ram = guest(data);
        let paging = start(&ram);
        Self { ram, paging }
    }

    fn park(&self) -> u64 {
        self.paging.settle();
        let request = ParkRequest { threads: Some(1), ..ParkRequest::default() };
        self.paging.park(&request, &AtomicBool::new(false), &|_, _| ()).parked
    }

    /// Touches a page of each block; how long each touch took, in microseconds, ascending.
    fn touch(&self, write: bool) -> Vec<f64> {
        let host = self.ram.regions()[0].host().addr();
        let mut times: Vec<f64> = (0..GUEST / BLOCK_SIZE)
            .map(|block| {
                let page = block as usize * BLOCK_BYTES + (block as usize * 97 % 512) * PAGE_BYTES;
                let word: *mut u64 = std::ptr::with_exposed_provenance_mut(host + page);
                let began = Instant::now();
                // SAFETY: in guest memory, which this program alone uses, and aligned.
                let found = unsafe { word.read_volatile() };
                if write {
                    // SAFETY: as above.
                    unsafe { word.write_volatile(found) };
                }
                let took = began.elapsed();
                self.paging.settle();
                took.as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

/// Touches of pages that are answered by UFFDIO_COPY of a page that is ready, in microseconds.
fn bare_copies(count: usize) -> Vec<f64> {
    let uffd = Userfault::open().expect("userfaultfd: run as root");
    let map = |pages: usize| {
        Mapping::new(MappingSource::Anonymous, pages * PAGE_BYTES, PAGE_BYTES).expect("memory")
    };
    let (target, ready) = (map(count), map(1));
    ready.populate(ready.range()).expect("memory");
    target.set_huge(target.range(), false).expect("advice");
    uffd.register(target.range()).expect("registered");
    let stop = AtomicBool::new(false);
    let mut times = Vec::with_capacity(count);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut fds = [rustix::event::PollFd::new(&uffd, rustix::event::PollFlags::IN)];
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = rustix::event::poll(&mut fds, Some(&wait));
                let answered = uffd.faults(|fault| {
                    let page = HostRange::new(fault.page, PAGE_BYTES).expect("a page");
                    // SAFETY: both are mapped, and no reference to either exists.
                    unsafe { uffd.copy(page, ready.range()) }.expect("copied");
                });
                answered.expect("faults");
            }
        });
        for page in 0..count {
            let address = target.range().addr() + page * PAGE_BYTES;
            let word: *const u64 = std::ptr::with_exposed_provenance(address);
            let began = Instant::now();
            // SAFETY: mapped and aligned.
            black_box(unsafe { word.read_volatile() });
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        stop.store(true, Ordering::Relaxed);
    });
    times.sort_by(f64::total_cmp);
    times
}

/// MiB per second of the codec alone, on the pages that are not zero, and the share that is left.
fn bare_lz4(data: &[u8]) -> (f64, f64) {
    let mut out = vec![0; get_maximum_output_size(PAGE_BYTES)];
    let mut table = CompressTable::small();
    let mut left = 0;
    let began = cpu_time();
    for page in data.as_chunks::<PAGE_BYTES>().0 {
        if page.iter().any(|&byte| byte != 0) {
            left += compress_into_with_table(page, &mut out, &mut table)
                .map_or(PAGE_BYTES, |len| len.min(PAGE_BYTES));
        }
    }
    (
        data.len() as f64 / MIB as f64 / (cpu_time() - began).as_secs_f64(),
        left as f64 / data.len() as f64,
    )
}

/// Milliseconds of processor time for writing to every line of `ram` in turn.
fn pass_over(ram: &GuestRam) -> f64 {
    let host = ram.regions()[0].host().addr();
    let began = cpu_time();
    for word in (0..GUEST as usize).step_by(64) {
        let word: *mut u64 = std::ptr::with_exposed_provenance_mut(host + word);
        // SAFETY: in guest memory, which this program alone uses, and aligned.
        let found = unsafe { word.read_volatile() };
        // SAFETY: as above.
        unsafe { word.write_volatile(found.wrapping_add(1)) };
    }
    (cpu_time() - began).as_secs_f64() * 1e3
}

/// Percent that it costs a guest whose memory is all in place that it could be parked, and the
/// same for the guest beside itself, which is noise.
///
/// The same memory is passed over with a pager, and twice without, in turn: between two guests, where
/// their memory lies makes more of a difference. Other work makes a pass longer and never shorter,
/// so the shortest counts.
fn armed(data: &[u8]) -> (f64, f64) {
    let ram = guest(data);
    let mut shortest = [f64::INFINITY; 3];
    for turn in 0..TURNS {
        // Each is first as often as last.
        for kind in (0..3).map(|nth| (turn + nth) % 3) {
            let paging = (kind == 0).then(|| start(&ram));
            for _ in 0..PASSES {
                shortest[kind] = shortest[kind].min(pass_over(&ram));
            }
            drop(paging);
        }
    }
    let [armed, first, second] = shortest;
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    (percent(armed / first.min(second)), percent(first.max(second) / first.min(second)))
}

fn at(times: &[f64], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn figure(name: &str, value: f64, unit: &str, goal: &str, met: bool) {
    println!(
        "figure park.{name} {value:.3} {unit} goal {goal} {}",
        if met { "met" } else { "short" }
    );
}

fn main() {
    let data = contents(GUEST as usize);
    println!("{} MiB of programs, every eighth page zero", data.len() as u64 / MIB);
    let parked = Parked::new(&data);
    let (mut ours, mut bare, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let (mut costs, mut blocks_back) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = parked.paging.stats().counters;
        let began = cpu_time();
        // On this thread, with all that belongs to it: moving out, compressing, keeping the record.
        let blocks = parked.park();
        let spent = cpu_time() - began;
        let stats = parked.paging.stats();
        let bytes = stats.counters.compress_bytes - before.compress_bytes;
        ours.push(bytes as f64 / MIB as f64 / spent.as_secs_f64());
        let (speed, share) = bare_lz4(&data);
        bare.push(speed);
        shares.push(share);
        let pool = stats.pool.store.mem_used_total + stats.pool.metadata_bytes;
        costs.push(pool as f64 / stats.absent_bytes as f64);
        println!(
            "round {round}: {blocks} blocks parked at {:.0} MiB/s, bare lz4 {speed:.0} MiB/s; \
             {:.1} % left, of which codec {:.1} %",
            ours[round as usize],
            100.0 * costs[round as usize],
            100.0 * share,
        );
        let times = parked.touch(round % 2 == 1);
        if round % 2 == 1 {
            writes.extend(times)
        } else {
            reads.extend(times)
        }
        let began = Instant::now();
        let back = parked.paging.unpark(Some(1), &AtomicBool::new(false), &|_, _| ()).returned;
        blocks_back.push(began.elapsed().as_secs_f64() * 1e6 / back as f64);
    }
    reads.sort_by(f64::total_cmp);
    writes.sort_by(f64::total_cmp);
    let copies = bare_copies(2000);
    let ratio = median(ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect());
    figure("compress-throughput", 100.0 * ratio, "%-of-bare-lz4", ">=85", ratio >= 0.85);
    let (slower, noise) = armed(&data);
    figure("armed", slower, "%-slower", "<=1", slower <= 1.0);
    figure("armed.noise", noise, "%-slower", "-", true);
    figure("cost", 100.0 * median(costs), "%-of-parked", "-", true);
    figure("codec-left", 100.0 * median(shares), "%-of-parked", "-", true);
    figure("fault.read.p50", at(&reads, 50), "us", "-", true);
    figure("fault.read.p99", at(&reads, 99), "us", "-", true);
    figure("fault.write.p50", at(&writes, 50), "us", "-", true);
    figure("fault.write.p99", at(&writes, 99), "us", "-", true);
    figure("unpark.block", median(blocks_back), "us", "-", true);
    figure("fault.bare-copy-of-a-page.p50", at(&copies, 50), "us", "-", true);
    figure("fault.bare-copy-of-a-page.p99", at(&copies, 99), "us", "-", true);
}
