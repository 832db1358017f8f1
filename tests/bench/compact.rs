// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The effect of one compaction pass on a fragmented guest: the huge-page share of resident memory,
//! the resident size, and the latency of the guest's memory accesses. The same workload on the
//! peers, which have no such pass, is printed for comparison. `blocks-before.png` and
//! `blocks-after.png` among the logs show the blocks.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::figures::{Figure, Goal};
use harness::guest::Guest;
use harness::host;
use harness::monitor::{Kind, Program, Spec};
use harness::{Error, Result, bare};
use serde_json::{Value, json};

use crate::{Bed, mib, patiently};

const MEMORY_MIB: u64 = 768;
const BLOCK: u64 = 2 << 20;
/// A third, all of it in single pages.
const BALLOON_MIB: u64 = MEMORY_MIB / 3;
/// Share of memory that the fragmenting file fills; a random half of it is freed.
const FILE_MIB: u64 = MEMORY_MIB / 100 * 80;
/// GPU buffers in our guest.
const GPU_MIB: u64 = 64;
/// What the thread that touches memory has.
const TOUCHED_MIB: u64 = 32;
const PASS_LIMIT: Duration = Duration::from_secs(300);
/// How often the pass is asked whether it has ended.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// The guest tells every second.
const STATISTICS_AGE: Duration = Duration::from_secs(3);

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for program in &bed.programs {
        figures.extend(patiently(|| one(bed, program))?);
    }
    Ok(figures)
}

/// Resident guest memory, and its share in huge pages in per cent.
fn resident(guest: &Guest) -> Result<(u64, f64)> {
    // Guest memory may be in mappings as short as a block: where huge pages are forbidden in one.
    let (memory, _) = host::mappings(guest.monitor.pid(), BLOCK)?;
    let share = 100.0 * memory.huge as f64 / memory.anonymous.max(1) as f64;
    Ok((memory.anonymous, share))
}

/// A guest with its memory in pieces, of which a thread touches some all the time.
fn fragmented(bed: &Bed, program: &Program) -> Result<Guest> {
    let ours = program.kind == Kind::Ballast;
    // One vCPU: in the emulated machine interrupts between two are lost now and then, and a thread
    // that never rests makes for many.
    let mut spec = Spec::new(&bed.payload, MEMORY_MIB);
    spec.boot_args = "quiet".into();
    if ours {
        spec = spec.with_gpu(640, 480, 1);
    }
    let mut guest = Guest::boot(program, spec, &bed.logs)?;
    guest.touch_everything()?;
    if ours {
        // Small buffers all over, every other one freed: no peer has a GPU to put them in.
        guest.agent.command(&format!("gpu-fill buffers {GPU_MIB}M dumb"))?;
        guest.agent.command("gpu-punch buffers")?;
    }
    guest.agent.command(&format!("file-fill pieces {FILE_MIB}M"))?;
    guest.agent.command("file-punch pieces 1")?;
    guest.agent.command(&format!("touch-start {TOUCHED_MIB}M"))?;
    Ok(guest)
}

fn one(bed: &Bed, program: &Program) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let ours = program.kind == Kind::Ballast;
    let mut add = |what: &str, value: f64, unit: &'static str, goal: Goal| {
        let name = format!("compact.{}.{what}", program.kind.name());
        let figure = Figure { name, value, unit, goal: if ours { goal } else { Goal::None } };
        println!("  {figure}");
        figures.push(figure);
    };
    println!("{}: a fragmented guest of {MEMORY_MIB} MiB", program.kind.name());
    let mut guest = fragmented(bed, program)?;
    // Steps below the size of a block: our driver would give blocks else. Peers get pages anyway.
    let step = if ours { 1 } else { BALLOON_MIB };
    let (mut target, mut made) = (0, 0);
    while target < BALLOON_MIB {
        target = (target + step).min(BALLOON_MIB);
        guest.balloon_to(target)?;
    }
    let undisturbed = touches(&mut guest)?;
    let (rss, huge) = resident(&guest)?;
    add("before.huge-backed", huge, "%", Goal::None);
    add("before.resident", mib(rss), "MiB", Goal::None);
    add("before.touch-p99", undisturbed / 1e3, "us", Goal::None);
    if ours {
        picture(bed, program, &guest, "before")?;
        guest.agent.command(&format!("touch-start {TOUCHED_MIB}M"))?;
        let before = Work::so_far(&mut guest)?;
        let report = pass(&mut guest)?;
        println!("  {report}");
        let work = Work::so_far(&mut guest)?.since(&before);
        println!("  {work}");
        let free = free_in_guest(&guest)?;
        let (rss, huge) = resident(&guest)?;
        let during = touches(&mut guest)?;
        add("huge-backed", huge, "%", Goal::AtLeast(95.0));
        add("resident", mib(rss), "MiB", Goal::None);
        let used = ((MEMORY_MIB - BALLOON_MIB) << 20).saturating_sub(free);
        add("used-by-guest", mib(used), "MiB", Goal::None);
        let excess = 100.0 * (rss as f64 - used as f64) / used as f64;
        add("resident-above-used", excess, "%", Goal::AtMost(2.0));
        add("touch-p99", during / 1e3, "us", Goal::AtMost(1000.0));
        let took = report["took_us"].as_u64().unwrap_or(0);
        add("pass", took as f64 / 1e6, "s", Goal::AtMost(4.0));
        // What the host's CPU and kernel take for as many pages and blocks without a guest.
        let count = |kind: &str| report[kind]["done"].as_u64().unwrap_or(0);
        let copies = bare::copies(work.of("pgmigrate_success"))?;
        add("limit.copies", copies.as_secs_f64(), "s", Goal::None);
        let collapses = bare::collapses(count("collapse"))?;
        add("limit.collapses", collapses.as_secs_f64(), "s", Goal::None);
        made = count("gather");
        picture(bed, program, &guest, "after")?;
    }
    guest.agent.verify("file-verify pieces")?;
    if ours {
        guest.agent.verify("gpu-verify buffers")?;
        drop(guest);
        add("limit.balloon", balloon_alone(bed, program, made)?.as_secs_f64(), "s", Goal::None);
    }
    Ok(figures)
}

/// How long the same guest takes to give up as many blocks at once, which it makes of what is free: a
/// pass cannot be faster.
fn balloon_alone(bed: &Bed, program: &Program, blocks: u64) -> Result<Duration> {
    let mut guest = fragmented(bed, program)?;
    let before = Work::so_far(&mut guest)?;
    let started = Instant::now();
    guest.balloon_to((blocks * BLOCK) >> 20)?;
    let took = started.elapsed();
    println!("  the balloon alone: {}", Work::so_far(&mut guest)?.since(&before));
    touches(&mut guest)?;
    Ok(took)
}

/// What the guest has free, once it has told: its driver empties the lists of each CPU before,
/// which hold up to an eighth of memory that `/proc/meminfo` does not count.
fn free_in_guest(guest: &Guest) -> Result<u64> {
    std::thread::sleep(STATISTICS_AGE);
    let told = guest.monitor.api().get("/balloon/statistics")?;
    told["free_memory"].as_u64().ok_or_else(|| Error::Check(format!("no free_memory: {told}")))
}

/// A picture of the blocks, drawn by the program itself, among the logs.
fn picture(bed: &Bed, program: &Program, guest: &Guest, when: &str) -> Result<()> {
    let status = Command::new(&program.path)
        .args(["memory", "map", "--title", &format!("{when} a compaction pass")])
        .arg("--api-sock")
        .arg(guest.monitor.api().socket())
        .arg("--png")
        .arg(bed.logs.join(format!("blocks-{when}.png")))
        .status()
        .map_err(Error::io("drawing the blocks"))?;
    if status.success() { Ok(()) } else { Err(Error::Check(format!("no picture: {status}"))) }
}

/// Ends the touching; its 99th percentile in nanoseconds.
fn touches(guest: &mut Guest) -> Result<f64> {
    let figures = guest.agent.figures("touch-stop")?;
    println!("  {figures:?}");
    let damaged = figures.get("damaged") != Some(&0);
    match figures.get("p99_ns") {
        Some(nanos) if !damaged => Ok(*nanos as f64),
        _ => Err(Error::Check(format!("touched memory: {figures:?}"))),
    }
}

/// What the pass costs besides time: pages that the guest migrates, faults of the host.
struct Work(Vec<(&'static str, u64)>);

impl Work {
    const GUEST: [&'static str; 11] = [
        "pgmigrate_success",
        "pgmigrate_fail",
        "balloon_migrate",
        "movable_migrate_gpu",
        "compact_stall",
        "compact_success",
        "compact_migrate_scanned",
        "compact_free_scanned",
        "balloon_inflate",
        "balloon_block_inflate",
        "balloon_block_deflate",
    ];

    fn so_far(guest: &mut Guest) -> Result<Self> {
        let counts = guest.agent.vmstat(Self::GUEST)?;
        let mut work: Vec<_> = Self::GUEST.into_iter().zip(counts).collect();
        work.push(("host_faults", host::minor_faults(guest.monitor.pid())?));
        work.push(("host_exits", host::kvm_exits()?));
        work.push(("deflate_requests", guest.balloon_counter("deflate_count")?));
        let outside = host::cpu_outside_guest(guest.monitor.pid())?;
        work.push(("monitor_ms", u64::try_from(outside.as_millis()).unwrap_or(u64::MAX)));
        let cpu = guest.agent.command("read /proc/stat")?;
        let ticks = |n: usize| {
            cpu.first().and_then(|l| l.split_whitespace().nth(n)?.parse::<u64>().ok()).unwrap_or(0)
        };
        work.push(("guest_user_ms", ticks(1) * 10));
        work.push(("guest_kernel_ms", (ticks(3) + ticks(6) + ticks(7)) * 10));
        work.push(("guest_idle_ms", (ticks(4) + ticks(5)) * 10));
        Ok(Self(work))
    }

    fn since(&self, before: &Self) -> Self {
        let changes = self.0.iter().zip(&before.0);
        Self(changes.map(|((name, now), (_, then))| (*name, now - then)).collect())
    }

    /// The count of this name.
    fn of(&self, name: &str) -> u64 {
        self.0.iter().find(|(other, _)| *other == name).map_or(0, |(_, count)| *count)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.0.iter().map(|(name, count)| format!("{name} {count}"));
        f.write_str(&words.collect::<Vec<_>>().join(", "))
    }
}

/// Runs a pass to its end; gives its report. Asking often would take a part of the one CPU.
fn pass(guest: &mut Guest) -> Result<Value> {
    guest.monitor.api().put("/memory/compact", &json!({ "wait": false }))?;
    let end = Instant::now() + PASS_LIMIT;
    loop {
        std::thread::sleep(BETWEEN_LOOKS);
        let status = guest.monitor.api().get("/memory/compact")?;
        if status["running"] == json!(false) {
            return Ok(status["last"].clone());
        }
        harness::check!(Instant::now() < end, "the pass has not ended: {status}");
    }
}
