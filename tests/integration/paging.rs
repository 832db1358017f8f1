// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests whose memory is parked: compressed into the monitor's pool, and brought back by a touch or
//! on request, with everything else going on.

use std::time::Duration;

use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::{Monitor, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

use crate::compaction::{compact, number};
use crate::devices::{drive, image};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
/// Parkings in the long test.
const ROUNDS: u64 = 50;
const BALLOON_LIMIT: Duration = Duration::from_secs(120);
const HUGE_LIMIT: Duration = Duration::from_secs(20);

fn boot(context: &Context, memory_mib: u64) -> Result<Guest> {
    Guest::boot(&context.ballast(), Spec::new(&context.payload, memory_mib), &context.logs)
}

fn report(guest: &Guest, path: &str, body: &Value) -> Result<Value> {
    let response = guest.monitor.api().put(path, body)?;
    serde_json::from_slice(&response.body)
        .map_err(|error| Error::Check(format!("{path}: {error}: {}", response.text())))
}

/// Parks, and checks that nothing ended it early.
fn park(guest: &Guest, floor_mib: u64) -> Result<Value> {
    let report = report(guest, "/memory/park", &json!({ "floor_mib": floor_mib }))?;
    check_eq!(report["stopped"], Value::Null);
    Ok(report)
}

fn unpark(guest: &Guest) -> Result<Value> {
    let report = report(guest, "/memory/unpark", &json!({}))?;
    check_eq!((number(&report, "/left")?, number(&report, "/lost")?), (0, 0));
    Ok(report)
}

fn paging(guest: &Guest) -> Result<Value> {
    guest.monitor.api().get("/memory/paging")
}

fn is_refused(guest: &Guest, method: &str, path: &str, body: &Value, why: &str) -> Result<()> {
    let response = guest.monitor.api().request(method, path, Some(&body.to_string()))?;
    check!(response.status == 400, "{method} {path} {body}: {}", response.status);
    check!(response.text().contains(why), "{method} {path} {body}: {}", response.text());
    Ok(())
}

/// The host has the memory of a parked guest, in whole blocks, and the guest gets it back intact.
pub(crate) fn a_parked_guest_gives_its_memory_to_the_host(context: &Context) -> Result<()> {
    let mut guest = boot(context, 256)?;
    guest.agent.command("text-fill kept 96M")?;
    // These do not compress.
    guest.agent.command("file-fill files 24M")?;
    let used = host::settled_free()?;
    let parked = park(&guest, 0)?;
    let gained = host::settled_free()?.saturating_sub(used);
    let status = paging(&guest)?;
    println!("gained {} MiB: {parked}; {status}", gained / MIB);
    let absent = number(&status, "/absent_bytes")?;
    check!(absent >= 96 * MIB, "{status}");
    // Part of it has come back since, by the guest's own timers.
    let cost = number(&status, "/pool_bytes")?;
    check!(gained + 16 * MIB >= absent - cost, "gained {gained} of {absent}, less {cost}");
    guest.agent.verify("text-verify kept")?;
    guest.agent.verify("file-verify files")?;
    let status = paging(&guest)?;
    println!("touched: {status}");
    check!(number(&status, "/counters/touched")? > 0, "{status}");
    check_eq!(number(&status, "/counters/lost")?, 0);

    // Again, and back on request: nothing is left to be faulted in.
    park(&guest, 0)?;
    let returned = unpark(&guest)?;
    println!("{returned}");
    let status = paging(&guest)?;
    check_eq!(number(&status, "/absent_bytes")?, 0);
    check_eq!(number(&guest.monitor.api().get("/memory/pool")?, "/original_bytes")?, 0);
    // Blocks that had come back by the page are made huge once the guest is quiet.
    let mut seen = Vec::new();
    guest.monitor.poll("memory to be huge again", HUGE_LIMIT, |monitor| {
        let (memory, _) = host::mappings(monitor.pid(), BLOCK)?;
        seen.push((memory.huge / MIB, memory.anonymous / MIB));
        Ok((memory.huge * 10 >= memory.anonymous * 9).then_some(()))
    })?;
    println!("huge, of all, in MiB: {seen:?}");
    guest.agent.verify("text-verify kept")?;
    guest.agent.verify("file-verify files")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Asked to, a guest first gives up what is free and what its disk still has; its target is as before,
/// and so are its memory and its files.
pub(crate) fn a_guest_is_trimmed_first(context: &Context) -> Result<()> {
    let drives = [drive("data", &image(context, "disk", 64)?, &json!({}))];
    let mut spec = Spec::new(&context.payload, 256);
    spec.more.insert("drives".into(), json!(drives));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("disk-write /dev/vda 64M 5")?;
    guest.agent.verify("disk-verify /dev/vda 64M 5")?;
    guest.agent.command("text-fill kept 48M")?;
    let plain = park(&guest, 0)?;
    unpark(&guest)?;
    let trimmed = report(&guest, "/memory/park", &json!({ "trim": true }))?;
    println!("not trimmed: {plain}\ntrimmed: {trimmed}; {}", paging(&guest)?);
    check_eq!(trimmed["stopped"], Value::Null);
    // Of about 180 MiB that are free or page cache.
    check!(number(&trimmed, "/trimmed_bytes")? >= 96 * MIB, "{trimmed}");
    // What it gave up need not be compressed, nor be found not to be compressible.
    let tried = |report: &Value| -> Result<u64> {
        Ok(number(report, "/parked")? + number(report, "/left_incompressible")?)
    };
    check!(tried(&trimmed)? < tried(&plain)?, "{plain} {trimmed}");
    let balloon = guest.monitor.api().get("/balloon/statistics")?;
    check_eq!((number(&balloon, "/target_mib")?, number(&balloon, "/actual_mib")?), (0, 0));
    guest.agent.verify("text-verify kept")?;
    guest.agent.verify("disk-verify /dev/vda 64M 5")?;
    unpark(&guest)?;
    // All that it gave up is its own again.
    guest.touch_everything()?;
    guest.agent.verify("text-verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Parked and brought back many times, with threads that use memory, a balloon that grows and
/// shrinks, passes, and blocks that the guest evacuates: no byte is wrong.
pub(crate) fn nothing_is_lost_however_often_it_is_parked(context: &Context) -> Result<()> {
    let mut guest = boot(context, 256)?;
    let api = guest.monitor.api().clone();
    guest.touch_everything()?;
    guest.agent.command("text-fill kept 40M")?;
    guest.agent.command("file-fill files 40M")?;
    guest.agent.start_busy(2, "6M")?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..ROUNDS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let choice = random >> 33;
        let parked = park(&guest, choice % 3 * 16)?;
        match choice % 7 {
            0 => guest.agent.verify("text-verify kept")?,
            1 => guest.agent.verify("file-verify files")?,
            2 => guest.monitor.balloon_to(choice % 80, &guest.spec, BALLOON_LIMIT)?,
            3 => drop(compact(&mut guest, &json!({}))?),
            4 => {
                let start = choice % 100 * BLOCK;
                api.put("/memory/evacuate", &json!({ "start": start, "blocks": 4 }))?;
                guest.monitor.balloon_to(0, &guest.spec, BALLOON_LIMIT)?;
            }
            5 => drop(unpark(&guest)?),
            _ => {
                let touched = format!("text-touch kept 40 {}", choice % 100_000);
                let figures = guest.agent.figures(&touched)?;
                check_eq!(figures.get("damaged"), Some(&0));
            }
        }
        if round % 10 == 0 {
            println!("{round}: {parked}");
        }
    }
    let busy = guest.agent.figures("busy-stop")?;
    check_eq!(busy.get("damaged"), Some(&0));
    guest.monitor.balloon_to(0, &guest.spec, BALLOON_LIMIT)?;
    guest.agent.verify("text-verify kept")?;
    guest.agent.verify("file-verify files")?;
    println!("{}", paging(&guest)?);
    unpark(&guest)?;
    check_eq!(number(&paging(&guest)?, "/counters/lost")?, 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// GPU buffers stay where they are, and are drawn from while everything else is parked.
pub(crate) fn buffers_of_the_display_stay(context: &Context) -> Result<()> {
    let spec = Spec::new(&context.payload, 256).with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("gpu-fill buffers 24M dumb")?;
    guest.agent.command("text-fill kept 64M")?;
    for _ in 0..3 {
        let parked = park(&guest, 0)?;
        println!("{parked}");
        check!(number(&parked, "/left_pinned")? > 0, "{parked}");
        guest.agent.verify("gpu-verify buffers")?;
        guest.agent.command("gpu-repaint buffers")?;
    }
    guest.agent.verify("text-verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Memory of small pages leaves and comes back page by page.
pub(crate) fn memory_of_small_pages(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 192);
    spec.more.insert("memory".into(), json!({ "backing": "small", "paging": { "codec": "zstd" } }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("text-fill kept 64M")?;
    for _ in 0..3 {
        println!("{}", park(&guest, 0)?);
        guest.agent.verify("text-verify kept")?;
    }
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A pool that is too small, requests at the wrong time, a paused guest, and an end during parking:
/// errors are reported, and nothing is lost.
pub(crate) fn parking_that_cannot_be(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 256);
    spec.more.insert("memory".into(), json!({ "paging": { "pool_mib": 8, "threads": 1 } }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let api = guest.monitor.api().clone();
    guest.agent.command("text-fill kept 96M")?;
    for body in [json!({ "floor_mib": -1 }), json!({ "surprise": 1 }), json!({ "wait": "yes" })] {
        is_refused(&guest, "PUT", "/memory/park", &body, "")?;
    }
    let full = report(&guest, "/memory/park", &json!({}))?;
    println!("a pool of 8 MiB: {full}");
    check!(full["stopped"].as_str().is_some_and(|why| why.contains("limit")), "{full}");
    guest.agent.verify("text-verify kept")?;
    unpark(&guest)?;

    // Paused before, the guest touches nothing, and goes on where it was.
    let paused = report(&guest, "/memory/park", &json!({ "pause": true, "floor_mib": 200 }))?;
    println!("paused: {paused}");
    check_eq!(number(&paused, "/left_wanted")?, 0);
    check_eq!(api.get("/")?["state"], "Paused");
    report(&guest, "/memory/park", &json!({}))?;
    api.patch("/vm", &json!({ "state": "Resumed" }))?;
    guest.agent.verify("text-verify kept")?;

    // The guest resets itself during the operation.
    api.put("/memory/park", &json!({ "wait": false }))?;
    guest.agent.farewell("reboot")?;
    guest.monitor.wait_exit(EXIT_LIMIT)?;
    check!(guest.monitor.stderr().contains("reset"), "{}", guest.monitor.stderr());

    // So does a signal end it.
    let mut guest = boot(context, 256)?;
    guest.agent.command("text-fill kept 96M")?;
    guest.monitor.api().put("/memory/park", &json!({ "wait": false }))?;
    crate::boot::terminate(guest.monitor.pid())?;
    check_eq!(guest.monitor.wait_exit(EXIT_LIMIT)?.code(), Some(0));
    Ok(())
}

/// Memory that cannot be parked is refused, in the configuration and by request.
pub(crate) fn memory_of_other_kinds(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 128);
    spec.more.insert("memory".into(), json!({ "backing": "memfd" }));
    let guest = Guest::boot(&context.ballast(), spec.clone(), &context.logs)?;
    is_refused(&guest, "PUT", "/memory/park", &json!({}), "memfd")?;
    check_eq!(paging(&guest)?["active"], false);
    check_eq!(guest.power_off()?.code(), Some(0));
    spec.more.insert("memory".into(), json!({ "backing": "memfd", "paging": {} }));
    let mut monitor = Monitor::start(&context.ballast(), &spec, &context.logs)?;
    check_eq!(monitor.wait_exit(EXIT_LIMIT)?.code(), Some(1));
    check!(monitor.stderr().contains("memory.paging"), "{}", monitor.stderr());
    Ok(())
}
