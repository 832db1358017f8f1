// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host-side compaction of guest memory while guests use it.
use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Guest memory may be in mappings as short as a block: where huge pages are forbidden in one.
const GUEST_MAPPING: u64 = 2 * MIB;

/// For a pass, in the emulated machine.
pub(crate) const PASS_LIMIT: Duration = Duration::from_secs(120);

/// Runs a pass to its end; gives its report.
pub(crate) fn compact(guest: &mut Guest, body: &Value) -> Result<Value> {
    let mut body = body.clone();
    body["wait"] = json!(false);
    guest.monitor.api().put("/memory/compact", &body)?;
    finish(guest)
}

/// Waits for the running pass; returns its report.
pub(crate) fn finish(guest: &mut Guest) -> Result<Value> {
    guest.monitor.poll("the end of a pass", PASS_LIMIT, |monitor| {
        let status = monitor.api().get("/memory/compact")?;
        Ok((status["running"] == json!(false)).then(|| status["last"].clone()))
    })
}

pub(crate) fn number(report: &Value, path: &str) -> Result<u64> {
    report
        .pointer(path)
        .and_then(Value::as_u64)
        .ok_or_else(|| Error::Check(format!("no number {path} in {report}")))
}

/// Resident guest memory, and its part in huge pages, by the host's kernel.
pub(crate) fn resident(guest: &Guest) -> Result<(u64, u64)> {
    let (memory, _) = host::mappings(guest.monitor.pid(), GUEST_MAPPING)?;
    Ok((memory.anonymous, memory.huge))
}

/// A balloon of `mib`, in steps that are smaller than a block: all of it are single pages.
pub(crate) fn balloon_by_pages(guest: &mut Guest, mib: u64) -> Result<()> {
    (1..=mib).try_for_each(|step| guest.balloon_to(step))
}

/// The balloon is in single pages all over a fragmented guest, so that few blocks are huge or free.
/// After a pass the balloon consists of whole blocks, memory in use is in huge pages, and unused
/// memory is free on the host.
pub(crate) fn blocks_replace_single_pages(context: &Context) -> Result<()> {
    const BALLOON_MIB: u64 = 120;
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 512), &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 380M")?;
    guest.agent.command("file-punch pieces 1")?;
    balloon_by_pages(&mut guest, BALLOON_MIB)?;
    let (free, in_blocks) = (host::settled_free()?, host::free_in_blocks()?);
    let (rss, huge) = resident(&guest)?;
    println!("before: {} MiB resident, {} of it huge", rss / MIB, huge / MIB);
    check!(huge < rss / 2, "{huge} of {rss} bytes are huge still: nothing to be done");

    let report = compact(&mut guest, &json!({}))?;
    println!("{report}");
    check_eq!(report["end"], json!("finished"));
    let gained = host::settled_free()?.saturating_sub(free);
    let gained_blocks = host::free_in_blocks()?.saturating_sub(in_blocks);
    let (rss, huge) = resident(&guest)?;
    let meminfo = guest.agent.meminfo()?;
    let unused = meminfo["MemFree"];
    println!(
        "after: {} MiB resident, {} of it huge; the host gained {} MiB, {} of it as blocks; the \
         guest has {} of {} MiB free",
        rss / MIB,
        huge / MIB,
        gained / MIB,
        gained_blocks / MIB,
        unused / MIB,
        meminfo["MemTotal"] / MIB,
    );
    println!("{}", command(context, &guest, &["map"])?);
    check!(huge >= rss / 100 * 90, "{huge} of {rss} bytes are huge");
    check!(gained >= 32 * MIB, "the host gained {gained} bytes");
    // The balloon has its target size, and the guest has lost nothing.
    check_eq!(guest.monitor.balloon_actual(&guest.spec)?, BALLOON_MIB);
    check_eq!(guest.monitor.api().get("/balloon")?["amount_mib"], json!(BALLOON_MIB));
    guest.agent.verify("file-verify pieces")?;

    // Nothing more can be gained, so nothing is done; requested through the command line.
    let said = command(context, &guest, &["compact", "--no-evacuate"])?;
    let steps = said.lines().find_map(|line| line.split_once(" steps, ")?.0.parse::<u64>().ok());
    check!(steps.is_some_and(|steps| steps <= 4), "{said}");
    for kind in ["before", "after", "discard", "collapse", "evacuate", "gather"] {
        check!(said.lines().any(|line| line.starts_with(kind)), "no {kind} in {said}");
    }
    pictures(context, &guest)?;
    guest.balloon_to(0)?;
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The output of `ballast memory ...`.
fn command(context: &Context, guest: &Guest, words: &[&str]) -> Result<String> {
    let output = Command::new(context.payload.ballast())
        .arg("memory")
        .args(words)
        .arg("--api-sock")
        .arg(guest.monitor.api().socket())
        .output()
        .map_err(Error::io("running ballast"))?;
    check!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The map on a terminal, as pictures, and in both forms of the API.
fn pictures(context: &Context, guest: &Guest) -> Result<()> {
    let drawn = command(context, guest, &["map"])?;
    check!(drawn.contains("huge page") && drawn.contains("ballooned"), "{drawn}");
    for (flag, name, magic) in
        [("--png", "map.png", b"\x89PNG".as_slice()), ("--svg", "map.svg", b"<svg".as_slice())]
    {
        let path = guest.monitor.dir().join(name);
        let path = path.to_str().ok_or_else(|| Error::Check("an odd folder".into()))?;
        command(context, guest, &["map", flag, path])?;
        let picture = fs::read(path).map_err(Error::io(path))?;
        check!(picture.starts_with(magic) && picture.len() > 500, "{name} is no picture");
    }
    let map = guest.monitor.api().get("/memory/blocks")?;
    let runs = map["runs"].as_array().map_or(0, Vec::len);
    let blocks: u64 =
        map["runs"].as_array().into_iter().flatten().filter_map(|run| run["blocks"].as_u64()).sum();
    check_eq!(blocks, guest.spec.memory_mib / 2);
    check!(runs > 0 && runs as u64 <= blocks, "{runs} runs of {blocks} blocks");
    Ok(())
}

/// Without a pass, a guest ballooned page by page stays far below this share of huge pages.
const TIDY_PERCENT: u64 = 80;

/// With background compaction, the monitor keeps memory in huge pages.
pub(crate) fn the_background_policy_runs_passes(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 256);
    let policy = json!({ "huge_percent": 90, "interval_s": 1, "budget_ms": 20_000 });
    spec.more.insert("memory".into(), json!({ "compaction": policy }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 160M")?;
    guest.agent.command("file-punch pieces 1")?;
    balloon_by_pages(&mut guest, 30)?;
    // The report that is left may be of a later pass, which had nothing to do any more.
    let waited = guest.monitor.poll("a pass of the background policy", PASS_LIMIT, |monitor| {
        let last = monitor.api().get("/memory/compact")?["last"].clone();
        let told = |path: &str| last.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let (before, after) = (told("/before/huge_bytes"), told("/after/huge_bytes"));
        let tidy = after > 0 && after >= told("/after/resident_bytes") / 100 * TIDY_PERCENT;
        Ok((after > before || tidy).then_some(last))
    });
    if waited.is_err() {
        let api = guest.monitor.api();
        println!("{}, {}", api.get("/memory/compact")?, api.get("/memory")?);
    }
    let report = waited?;
    println!("{report}");
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A kernel without blocks and evacuation leaves its memory in small pages after inflation and
/// deflation; the host collapses them again.
pub(crate) fn a_stock_guest_is_made_huge_again(context: &Context) -> Result<()> {
    let mut guest = Guest::boot(&context.ballast(), stock(context), &context.logs)?;
    fragment_stock(&mut guest)?;
    let (rss, before) = resident(&guest)?;
    check!(before < rss / 4 * 3, "{before} of {rss} bytes are huge: nothing to be done");
    let report = compact(&mut guest, &json!({}))?;
    let (rss, after) = resident(&guest)?;
    println!("huge: {} MiB, then {} of {} MiB; {report}", before / MIB, after / MIB, rss / MIB);
    check!(after >= rss / 100 * 90, "{after} of {rss} bytes are huge");
    check!(number(&report, "/collapse/done")? > 0, "{report}");
    check_eq!(number(&report, "/evacuate/done")?, 0);
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A guest with the stock driver, and without its warnings: on a slow machine they are many.
pub(crate) fn stock(context: &Context) -> Spec {
    Spec { boot_args: "loglevel=3".into(), ..Spec::debian(&context.payload, 384) }
}

/// All memory of a guest with the stock driver in small pages, all of them present.
pub(crate) fn fragment_stock(guest: &mut Guest) -> Result<()> {
    guest.touch_everything()?;
    guest.agent.command("fill kept 32M")?;
    guest.agent.command("file-fill pieces 200M")?;
    guest.agent.command("file-punch pieces 1")?;
    guest.balloon_to(110)?;
    guest.balloon_to(0)?;
    guest.agent.command("file-free pieces")?;
    guest.touch_everything()
}

/// Programs check their data while passes run, the balloon changes, zram is active and GPU buffers
/// are scattered over memory; the first pass after each change of the balloon is cancelled at some
/// step.
pub(crate) fn data_stays_intact_through_passes(context: &Context) -> Result<()> {
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 512) }.with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("gpu-fill buffers 64M dumb")?;
    guest.agent.command("zram-fill 0 64M")?;
    guest.agent.command("file-fill pieces 200M")?;
    guest.agent.command("gpu-punch buffers")?;
    guest.agent.command("file-punch pieces 1")?;
    guest.agent.command("busy-start 2 20M")?;
    let (mut passes, mut cancelled, mut steps) = (0, 0, 0);
    for (round, target) in [60, 20, 113, 40, 7, 90, 33, 0, 64, 0].into_iter().enumerate() {
        guest.monitor.set_balloon(target, &guest.spec)?;
        for cancel_after in [Some(Duration::from_millis(20 * round as u64)), None] {
            let some_time = json!({ "wait": false, "budget_ms": 4000 });
            guest.monitor.api().put("/memory/compact", &some_time)?;
            if let Some(after) = cancel_after {
                std::thread::sleep(after);
                guest.monitor.api().request("DELETE", "/memory/compact", None)?;
            }
            let report = finish(&mut guest)?;
            passes += 1;
            cancelled += u32::from(report["end"] == json!("cancelled"));
            for kind in ["discard", "collapse", "evacuate", "gather"] {
                steps += number(&report, &format!("/{kind}/done"))?;
            }
        }
        guest.balloon_to(target)?;
        check_eq!(guest.agent.figures("busy-count")?["damaged"], 0);
        if round % 3 == 2 {
            guest.agent.verify("zram-verify 0")?;
            guest.agent.verify("file-verify pieces")?;
            guest.agent.verify("gpu-verify buffers")?;
        }
    }
    let gpu = guest.monitor.api().get("/gpu")?;
    let moved = number(&gpu, "/counters/migrated_pages")?;
    println!("{passes} passes, {cancelled} cancelled, {steps} steps done, {moved} GPU pages moved");
    check!(moved > 0, "no GPU page had to move");
    check!(steps > 0, "the passes had nothing to do");
    check!(cancelled > 0, "no pass was cancelled");
    guest.agent.verify("busy-stop")?;
    guest.agent.verify("zram-verify 0")?;
    guest.agent.verify("file-verify pieces")?;
    guest.agent.verify("gpu-verify buffers")?;
    check_eq!(guest.monitor.balloon_actual(&guest.spec)?, 0);
    check_eq!(guest.agent.vmstat(["oom_kill"])?, [0]);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A guest that is paused in the middle of a pass, then resets in the middle of another: the pass
/// ends, and so does the monitor.
pub(crate) fn recognises_guests_that_reset_or_hang(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 384), &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 240M")?;
    guest.agent.command("file-punch pieces 1")?;
    balloon_by_pages(&mut guest, 40)?;
    let api = guest.monitor.api().clone();
    api.put("/memory/compact", &json!({ "wait": false }))?;
    api.patch("/vm", &json!({ "state": "Paused" }))?;
    let report = finish(&mut guest)?;
    println!("paused: {report}");
    // A paused guest takes no part.
    let response = api.request("PUT", "/memory/compact", Some("{}"))?;
    check_eq!(response.status, 400);
    check!(response.text().contains("paused"), "{}", response.text());
    api.patch("/vm", &json!({ "state": "Resumed" }))?;
    guest.agent.verify("file-verify pieces")?;
    guest.monitor.balloon_to(40, &guest.spec, PASS_LIMIT)?;

    api.put("/memory/compact", &json!({ "wait": false }))?;
    guest.agent.farewell("reboot")?;
    let status = guest.monitor.wait_exit(EXIT_LIMIT)?;
    check!(guest.monitor.stderr().contains("reset"), "{status}: {}", guest.monitor.stderr());
    Ok(())
}

/// Invalid requests get an error and change nothing.
pub(crate) fn rejects_invalid_passes(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 256), &context.logs)?;
    guest.agent.command("fill kept 64M")?;
    let api = guest.monitor.api().clone();
    let before = api.get("/memory")?;
    for body in [
        json!({ "scope": "range", "start": 256 * MIB, "blocks": 1 }),
        json!({ "scope": "range", "start": 254 * MIB, "blocks": 2 }),
        json!({ "scope": "range", "start": 4096, "blocks": 1 }),
        json!({ "scope": "range", "start": 0, "blocks": 0 }),
        json!({ "scope": "range", "start": 0, "blocks": u64::MAX }),
        json!({ "scope": "range" }),
        json!({ "start": 0, "blocks": 1 }),
        json!({ "scope": "cma" }),
        json!({ "scope": "everything" }),
        json!({ "back": true }),
        json!({ "budget_ms": 0 }),
        json!({ "budget_mib": 0 }),
        json!({ "budget_mib": -1 }),
        json!({ "surprise": 1 }),
    ] {
        let response = api.request("PUT", "/memory/compact", Some(&body.to_string()))?;
        check!(response.status == 400, "{body}: {} {}", response.status, response.text());
        check!(response.fault_message().is_some(), "{body}: {}", response.text());
    }
    check_eq!(api.get("/memory/compact")?["last"], Value::Null);
    let after = api.get("/memory")?;
    let told = |memory: &Value| memory["resident_bytes"].as_u64().unwrap_or(0);
    check!(told(&after) >= told(&before), "{before} became {after}");
    check!(told(&after) - told(&before) < 16 * MIB, "{before} became {after}");

    // Two at once: the second is refused, with and without waiting.
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 120M")?;
    guest.agent.command("file-punch pieces 1")?;
    balloon_by_pages(&mut guest, 24)?;
    api.put("/memory/compact", &json!({ "wait": false }))?;
    let mut refused = 0;
    for wait in [true, false] {
        let body = json!({ "wait": wait, "budget_ms": 1 }).to_string();
        let response = api.request("PUT", "/memory/compact", Some(&body))?;
        if response.status == 400 {
            check!(response.text().contains("is running"), "{}", response.text());
            refused += 1;
        }
    }
    let report = finish(&mut guest)?;
    // A quick machine may have been through with the first.
    check!(refused > 0 || number(&report, "/took_us")? < 1_000_000, "{report}");
    guest.agent.verify("verify kept")?;
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
