// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free memory that returns to the host without the balloon: reported by the guest when it becomes
//! free, or hinted on the host's request.

use std::time::Duration;

use harness::guest::Guest;
use harness::monitor::{Balloon, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// For the guest to report or hint what it has free; it waits seconds before it reports.
const LIMIT: Duration = Duration::from_secs(120);
/// Commands of hinting (virtio 1.3, 5.5.6.5): the host's first run, and that it is done; the guest's
/// that it has hinted all.
const FIRST_RUN: u64 = 2;
const DONE: u64 = 1;
const GUEST_STOP: u64 = 0;

/// What is freed in the guest becomes free memory of the host, and comes back when it is used.
pub(crate) fn freed_memory_is_reported(context: &Context) -> Result<()> {
    const FREED: u64 = 200 * MIB;
    let mut spec = Spec::new(&context.payload, 512);
    spec.balloon = Some(Balloon { reporting: true, ..Balloon::default() });
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("fill kept 48M")?;
    guest.agent.command(&format!("fill reported {FREED}"))?;
    let before = host::settled_free()?;
    guest.agent.command("free reported")?;
    // Pieces below 2 MiB are not reported.
    let wanted = FREED / 100 * 95;
    let gained = guest.monitor.poll("what was freed to be reported", LIMIT, |_| {
        let gained = host::free()?.saturating_sub(before);
        Ok((gained >= wanted).then_some(gained))
    })?;
    let (asked, freed) = (
        guest.balloon_counter("free_page_report/asked")?,
        guest.balloon_counter("free_page_report/freed")?,
    );
    println!(
        "{} MiB freed: the host gained {} MiB; {} MiB reported so far, {} MiB of it verified free",
        FREED / MIB,
        gained / MIB,
        asked / MIB,
        freed / MIB
    );
    check!(asked >= freed && freed >= wanted, "counted {freed} of {asked} bytes");
    check_eq!(guest.ballooned()?, 0);
    guest.agent.verify("verify kept")?;
    guest.agent.command(&format!("fill again {FREED}"))?;
    guest.agent.verify("verify again")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The host asks for all free pages, while programs of the guest go on taking and checking memory.
/// The guest keeps the pages back until the host has said that it is done.
pub(crate) fn free_memory_is_hinted_on_request(context: &Context) -> Result<()> {
    let mut spec = Spec { cpus: 2, ..Spec::new(&context.payload, 512) };
    let balloon = json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_hinting": true });
    spec.more.insert("balloon".into(), balloon);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("fill kept 48M")?;
    guest.agent.start_busy(1, "32M")?;
    let free = guest.agent.meminfo()?["MemFree"];
    let before = host::settled_free()?;

    guest
        .monitor
        .api()
        .patch("/balloon/hinting/start", &json!({ "acknowledge_on_stop": false }))?;
    wait_for_hints(&mut guest, FIRST_RUN)?;
    let gained = host::settled_free()?.saturating_sub(before);
    let held = guest.agent.meminfo()?["MemFree"];
    println!(
        "{} MiB were free: the host gained {} MiB; {} MiB are free in the guest now",
        free / MIB,
        gained / MIB,
        held / MIB
    );
    check!(gained >= free / 100 * 85, "gained {gained} of {free} bytes");
    check!(held <= free / 100 * 15, "{held} of {free} bytes are still free in the guest");
    let freed = guest.balloon_counter("free_page_hint/freed")?;
    check!(freed >= free / 100 * 85, "counted {freed} of {free} bytes");
    check_eq!(guest.ballooned()?, 0);

    guest.monitor.api().patch("/balloon/hinting/stop", &json!({}))?;
    check_eq!(guest.monitor.api().get("/balloon/hinting/status")?["host_cmd"], DONE);
    guest.agent.command(&format!("fill again {}M", free / MIB - 48))?;
    guest.agent.verify("verify again")?;
    guest.agent.command("free again")?;

    // Again; now the guest gets its pages back as soon as it has hinted them all.
    guest.monitor.api().patch("/balloon/hinting/start", &json!({}))?;
    wait_for_hints(&mut guest, DONE)?;
    check!(guest.balloon_counter("free_page_hint/freed")? > freed, "nothing came the second time");
    guest.agent.command(&format!("fill again {}M", free / MIB - 48))?;
    guest.agent.verify("verify again")?;
    guest.agent.verify("busy-stop")?;
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A guest that fills free pages with a pattern, and checks it when it takes them, would find zeroes
/// where pages were given back: what it reports is ignored. The balloon works as usual. Shown with
/// Debian's kernel, whose driver tells the pattern.
pub(crate) fn poisoned_pages_are_left_alone(context: &Context) -> Result<()> {
    let mut spec = Spec::debian(&context.payload, 384);
    spec.balloon = Some(Balloon { reporting: true, ..Balloon::default() });
    spec.boot_args = "page_poison=1".into();
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("fill reported 128M")?;
    guest.agent.command("free reported")?;
    let left = guest.monitor.poll("pages to be reported", LIMIT, |monitor| {
        let left = monitor.api().get("/metrics")?["balloon"]["poisoned_buffers"].as_u64();
        Ok(left.filter(|left| *left > 0))
    })?;
    println!("{left} reports were left alone");
    guest.balloon_to(128)?;
    guest.balloon_to(0)?;
    let inflated = guest.balloon_counter("inflation/asked")?;
    check!(inflated >= 126 * MIB, "{inflated} bytes went back by inflation");
    // All of memory is taken, and so checked.
    let available = guest.agent.meminfo()?["MemAvailable"] / MIB;
    guest.agent.command(&format!("fill again {}M", available - 32))?;
    guest.agent.verify("verify again")?;
    check_eq!(guest.balloon_counter("free_page_report/asked")?, 0);
    let complaints = guest.monitor.console().lines_from(0);
    let complaint = complaints.iter().find(|line| line.text.contains("pagealloc:"));
    check!(complaint.is_none(), "the guest found {complaint:?}");
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Waits for the guest to say that it has hinted all that it has, while the host's command is
/// `host_cmd`.
fn wait_for_hints(guest: &mut Guest, host_cmd: u64) -> Result<()> {
    guest.monitor.poll("the guest to have hinted all", LIMIT, |monitor| {
        let status = monitor.api().get("/balloon/hinting/status")?;
        let now = status["host_cmd"].as_u64();
        let now = now.ok_or_else(|| Error::Check(format!("no command in {status}")))?;
        Ok((now == host_cmd && status["guest_cmd"] == GUEST_STOP).then_some(()))
    })
}
