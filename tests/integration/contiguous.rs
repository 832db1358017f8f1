// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous memory for the guest's devices, and its backing on the host.

use std::time::{Duration, Instant};

use harness::confine::NoHugePages;
use harness::fragments;
use harness::guest::{CMA, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

use crate::compaction::{PASS_LIMIT, compact, number, resident};

const MIB: u64 = 1 << 20;

/// A guest with a region of `cma_mib`.
fn boot(context: &Context, memory_mib: u64, cma_mib: u64) -> Result<Guest> {
    let mut spec = Spec::new(&context.payload, memory_mib);
    spec.more.insert("memory".into(), json!({ "cma_mib": cma_mib }));
    Guest::boot(&context.ballast(), spec, &context.logs)
}

/// The CMA region is at the address passed to the guest, costs nothing while it is unused, is of
/// huge pages when it is backed, and serves for contiguous memory then.
pub(crate) fn backs_the_region_on_request(context: &Context) -> Result<()> {
    const SIZE: u64 = 64 * MIB;
    let mut guest = boot(context, 384, SIZE / MIB)?;
    let api = guest.monitor.api().clone();
    let idle = api.get("/memory/cma")?;
    println!("idle: {idle}");
    let start = number(&idle, "/start")?;
    check_eq!(number(&idle, "/size_bytes")?, SIZE);
    check_eq!(start % (2 * MIB), 0);
    let cmdline = guest.agent.command("read /proc/cmdline")?.join(" ");
    check!(cmdline.contains(&format!("cma={SIZE}@{start:#x}")), "{cmdline}");
    let told = |guest: &mut Guest, file: &str| -> Result<u64> {
        let text = guest.agent.command(&format!("read {CMA}/{file}"))?.join("");
        text.trim().parse().map_err(|_| Error::Check(format!("{file}: {text}")))
    };
    check_eq!(told(&mut guest, "base_pfn")? * host::PAGE, start);
    check_eq!(told(&mut guest, "count")? * host::PAGE, SIZE);
    check!(number(&idle, "/resident_bytes")? <= SIZE / 8, "{idle}");

    // Backed before a device of the guest has it.
    let report = compact(&mut guest, &json!({ "scope": "cma", "back": true }))?;
    let backed = api.get("/memory/cma")?;
    println!("backed: {backed}; {report}");
    check_eq!(number(&backed, "/resident_bytes")?, SIZE);
    check!(number(&backed, "/huge_bytes")? >= SIZE / 100 * 90, "{backed}");
    let (before, _) = resident(&guest)?;
    guest.agent.command(&format!("write {CMA}/alloc {}", 48 << 8))?;
    check_eq!(told(&mut guest, "used")?, 48 << 8);
    let (after, _) = resident(&guest)?;
    check!(after < before + 8 * MIB, "{before} bytes became {after}");
    guest.agent.command(&format!("write {CMA}/free {}", 48 << 8))?;

    // Lent to programs, it is memory like any other; and given back it costs nothing again.
    guest.agent.command("fill lent 240M")?;
    guest.agent.verify("verify lent")?;
    guest.agent.command("free lent")?;
    guest.balloon_to(320)?;
    let empty = api.get("/memory/cma")?;
    println!("in the balloon: {empty}");
    check!(number(&empty, "/resident_bytes")? <= SIZE / 4, "{empty}");
    // What is in the balloon is not backed.
    let report = compact(&mut guest, &json!({ "scope": "cma", "back": true }))?;
    println!("{report}");
    let resident = number(&api.get("/memory/cma")?, "/resident_bytes")?;
    let ballooned = number(&api.get("/memory/cma")?, "/ballooned_bytes")?;
    check!(resident + ballooned <= SIZE, "{resident} resident, {ballooned} in the balloon");
    guest.balloon_to(0)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The guest's figures for the region; waits until they satisfy `right`.
fn told(guest: &mut Guest, what: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let waited = guest.monitor.poll(what, Duration::from_secs(30), |monitor| {
        last = monitor.api().get("/memory/cma")?;
        Ok(right(&last["guest"]).then(|| last["guest"].clone()))
    });
    println!("{what}: {last}");
    waited
}

/// The guest reports how the region is used: free, lent to movable pages, allocated as contiguous
/// memory; the report matches its kernel's figures.
pub(crate) fn reports_how_the_region_is_used(context: &Context) -> Result<()> {
    const SIZE: u64 = 64 * MIB;
    const HALF: u64 = SIZE / 2;
    let mut guest = boot(context, 512, SIZE / MIB)?;
    let is = |told: &Value, name: &str, bytes: u64| told[name].as_u64() == Some(bytes);
    let at_least =
        |told: &Value, name: &str, bytes| told[name].as_u64().is_some_and(|b| b >= bytes);
    let idle = told(&mut guest, "idle", |told| is(told, "total_bytes", SIZE))?;
    check!(at_least(&idle, "free_bytes", SIZE / 4 * 3), "{idle}");
    check!(is(&idle, "contiguous_bytes", 0), "{idle}");

    // Programs and zram have it, while no device wants it.
    guest.agent.command("fill anonymous 400M")?;
    guest.agent.command("zram-fill 0 24M")?;
    let lent = told(&mut guest, "lent", |told| at_least(told, "lent_bytes", SIZE / 4))?;
    check!(is(&lent, "contiguous_bytes", 0), "{lent}");
    guest.agent.command("free anonymous")?;

    guest.agent.command(&format!("write {CMA}/alloc {}", HALF / host::PAGE))?;
    // Figures that were taken in the middle of it do not add up yet.
    told(&mut guest, "half of it in use", |told| {
        let rest = ["free_bytes", "lent_bytes"].map(|name| told[name].as_u64().unwrap_or(SIZE));
        is(told, "contiguous_bytes", HALF) && rest.iter().sum::<u64>() <= HALF
    })?;
    let [free] = guest.agent.vmstat(["nr_free_cma"])?;
    let free = free * host::PAGE;
    told(&mut guest, "as the guest's kernel has it", |told| {
        told["free_bytes"].as_u64().is_some_and(|told| told.abs_diff(free) < 2 * MIB)
    })?;
    let all = guest.monitor.api().get("/balloon/statistics")?;
    check_eq!(number(&all, "/cma_total")?, SIZE);
    check_eq!(number(&all, "/cma_allocated")?, HALF);
    check_eq!(guest.balloon_counter("stats_unknown")?, 0);

    guest.agent.command(&format!("write {CMA}/free {}", HALF / host::PAGE))?;
    told(&mut guest, "given back", |told| is(told, "contiguous_bytes", 0))?;
    guest.agent.verify("zram-verify 0")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Starts and stops a thread that takes contiguous memory and gives it back; what it counted.
fn take_contiguous(guest: &mut Guest, pages: u64) -> Result<()> {
    let writes = format!("{CMA}/alloc {pages} {CMA}/free {pages}");
    guest.agent.command(&format!("repeat-start contiguous {writes}")).map(drop)
}

/// While the host has blocks of the region evacuated again and again, no request for contiguous memory
/// fails that would not fail without; and the region is whole afterwards.
pub(crate) fn requests_succeed_while_blocks_are_evacuated(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 128;
    const WANTED_PAGES: u64 = 96 << 8;
    let mut guest = boot(context, 640, CMA_MIB)?;
    let start = number(&guest.monitor.api().get("/memory/cma")?, "/start")?;
    take_contiguous(&mut guest, WANTED_PAGES)?;
    std::thread::sleep(Duration::from_secs(5));
    let alone = guest.agent.figures("repeat-stop contiguous")?;

    take_contiguous(&mut guest, WANTED_PAGES)?;
    let (started, mut rounds, mut evacuated) = (Instant::now(), 0, 0);
    while rounds < 12 || started.elapsed() < context.stress {
        let body = json!({ "start": start, "blocks": CMA_MIB / 2 });
        let answer = guest.monitor.api().put("/memory/evacuate", &body)?;
        let report: Value = serde_json::from_slice(&answer.body)
            .map_err(|e| Error::Check(format!("{e}: {}", answer.text())))?;
        evacuated += report["evacuated"].as_u64().unwrap_or(0);
        if rounds % 3 == 2 {
            // Blocks that are gathered lie next to those that are evacuated.
            guest.balloon_to(160)?;
        }
        guest.balloon_to(0)?;
        guest.check_kernel_is_content()?;
        rounds += 1;
    }
    let raced = guest.agent.figures("repeat-stop contiguous")?;
    println!(
        "{rounds} requests evacuated {evacuated} blocks; alone {alone:?}, with them {raced:?}"
    );
    check!(evacuated > 0, "the host got no block of the region");
    check!(raced["rounds"] > 2, "{raced:?}");
    if alone["refused"] == 0 {
        check_eq!(raced["refused"], 0);
    }
    // The whole region can still be allocated.
    let all = CMA_MIB << 8;
    for _ in 0..3 {
        guest.agent.command(&format!("write {CMA}/alloc {all}"))?;
        guest.agent.command(&format!("write {CMA}/free {all}"))?;
    }
    check_eq!(guest.balloon_counter("evacuation_invalid_replies")?, 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The balloon takes the region's blocks first: kernel memory, which cannot come from the region, can
/// be allocated in pieces of any size afterwards.
pub(crate) fn balloon_leaves_ordinary_memory_to_the_kernel(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 128;
    let mut guest = boot(context, 768, CMA_MIB)?;
    fragments::keep_little_free(&mut guest)?;
    guest.balloon_to(384)?;
    let [cma] = guest.agent.vmstat(["nr_free_cma"])?;
    let blocks = guest.agent.vmstat(["balloon_block_inflate"])?[0];
    println!(
        "{blocks} blocks in the balloon, {} MiB of the region are free",
        (cma * host::PAGE) / MIB
    );
    check!(cma * host::PAGE <= CMA_MIB / 8 * MIB, "{cma} pages of the region are left");
    for order in [9, 3, 2] {
        let [free, cma] = guest.agent.vmstat(["nr_free_pages", "nr_free_cma"])?;
        let free = (free - cma) * host::PAGE;
        let bytes = guest.agent.figures(&format!("order-fill {order}"))?["bytes"];
        guest.agent.command("order-free")?;
        println!("order {order}: {} of {} MiB", bytes / MIB, free / MIB);
        check!(bytes >= free / 100 * 90, "order {order}: {bytes} of {free} bytes");
    }
    // A device that wants the region gets it, and the balloon looks elsewhere.
    guest.agent.command(&format!("write {CMA}/alloc {}", 96 << 8))?;
    let [released] = guest.agent.vmstat(["balloon_block_release"])?;
    check!(released >= 40, "only {released} blocks were given back");
    guest.agent.command(&format!("write {CMA}/free {}", 96 << 8))?;
    guest.balloon_to(0)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A buffer that the GPU reads sequentially is backed by huge pages immediately, without waiting
/// for the next periodic check.
pub(crate) fn pictures_are_made_huge_at_once(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 320).with_gpu(1920, 1080, 1);
    let policy =
        json!({ "huge_percent": 0, "interval_s": 3600, "stall_ms": 0, "budget_ms": 20_000 });
    spec.more.insert("memory".into(), json!({ "compaction": policy }));
    // What the guest had while there were no huge pages is in small pages, also when there are some.
    let lean = NoHugePages::from_now_on()?;
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    let (rss, huge) = resident(&guest)?;
    // The console that the kernel draws is a picture, too.
    check!(huge < rss / 10, "{huge} of {rss} bytes are huge: nothing to be done");
    drop(lean);

    guest.agent.command("screen-start 0")?;
    let last = guest.monitor.poll("a pass for the GPU", PASS_LIMIT, |monitor| {
        let last = monitor.api().get("/memory/compact")?["last"].clone();
        let more = last["after"]["huge_bytes"].as_u64() > Some(huge);
        Ok((more && last["back"]["done"].as_u64() > Some(0)).then_some(last))
    })?;
    println!("of {} MiB resident: {last}", rss / MIB);
    check_eq!(last["end"], json!("finished"));
    check!(number(&last, "/after/huge_bytes")? < rss / 2, "more than pictures was made huge");
    for other in ["discard", "collapse", "evacuate", "gather"] {
        check_eq!(number(&last, &format!("/{other}/done"))?, 0);
    }
    let agent = &mut guest.agent;
    guest.monitor.poll("a frame", PASS_LIMIT, |_| {
        Ok(agent.figures("screen-count")?.get("frames").is_some_and(|f| *f > 0).then_some(()))
    })?;
    guest.agent.verify("screen-stop")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
