// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Inflating and deflating the balloon.

use std::time::{Duration, Instant};

use harness::guest::{BALLOON_LIMIT, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn boot(context: &Context, memory_mib: u64) -> Result<Guest> {
    Guest::boot(&context.ballast(), Spec::new(&context.payload, memory_mib), &context.logs)
}

/// A balloon of half of memory: at least 98 % of it becomes free memory of the host. After
/// deflation the guest has all of it again.
pub(crate) fn half_of_memory_and_back(context: &Context) -> Result<()> {
    let mut guest = boot(context, 1024)?;
    guest.touch_everything()?;
    let (resident, _) = host::mappings(guest.monitor.pid(), 64 * MIB)?;
    let before = host::settled_free()?;
    guest.balloon_to(512)?;
    let after = host::settled_free()?;
    let (left, _) = host::mappings(guest.monitor.pid(), 64 * MIB)?;
    println!("guest memory: {resident:?} before, {left:?} after");
    let gained = after.saturating_sub(before);
    println!("inflated 512 MiB: the host's free memory rose by {:.1} MiB", mib(gained));
    check!(gained >= 512 * MIB / 100 * 98, "only {:.1} of 512 MiB", mib(gained));

    guest.balloon_to(0)?;
    let available = guest.agent.meminfo()?["MemAvailable"] / MIB;
    check!(available > 780, "after deflation the guest has {available} MiB");
    guest.agent.command(&format!("fill again {}M", available - 24))?;
    guest.agent.verify("verify again")?;
    let used = before.saturating_sub(host::settled_free()?);
    println!("deflated and used again: the host's free memory is {:.1} MiB below", mib(used));
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The API's statistics match the guest's `/proc/meminfo`.
pub(crate) fn statistics_agree_with_the_guest(context: &Context) -> Result<()> {
    let mut guest = boot(context, 512)?;
    for target in [0, 128, 64] {
        guest.balloon_to(target)?;
        // The guest answers about once a second, and what its CPUs have in lists counts as free from
        // then on; wait for figures that belong to this balloon.
        let agent = &mut guest.agent;
        let mut total = 0;
        let stats =
            guest.monitor.poll("statistics that agree", Duration::from_secs(60), |monitor| {
                let meminfo = agent.meminfo()?;
                let free = meminfo["MemFree"];
                total = meminfo["MemTotal"];
                let stats = monitor.api().get("/balloon/statistics")?;
                let told_total = stats["total_memory"].as_u64().unwrap_or(0);
                let told_free = stats["free_memory"].as_u64().unwrap_or(0);
                let agree = told_total == total && told_free.abs_diff(free) < 8 * MIB;
                Ok(agree.then_some(stats))
            })?;
        check_eq!(stats["target_mib"].as_u64(), Some(target));
        check_eq!(stats["actual_mib"].as_u64(), Some(target));
        check_eq!(stats["actual_pages"].as_u64(), Some(target * MIB / host::PAGE));
        let available = stats["available_memory"].as_u64().unwrap_or(0);
        check!(available <= total, "{stats}");
    }
    check_eq!(guest.monitor.api().get("/balloon")?["amount_mib"].as_u64(), Some(64));
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// With nearly all memory in the balloon, the guest deflates as needed.
pub(crate) fn deflates_rather_than_running_out_of_memory(context: &Context) -> Result<()> {
    let mut guest = boot(context, 512)?;
    guest.balloon_to(384)?;
    // More than is left outside the balloon.
    guest.agent.command("fill a 200M")?;
    guest.agent.verify("verify a")?;
    let actual = guest.monitor.balloon_actual(&guest.spec)?;
    check!(actual < 384, "the balloon still has {actual} MiB");
    let killed = guest.agent.vmstat(["oom_kill"])?;
    check_eq!(killed, [0]);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Programs keep using and checking their memory while the balloon goes up and down.
pub(crate) fn memory_in_use_is_left_alone(context: &Context) -> Result<()> {
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 512) };
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("fill still 64M")?;
    guest.agent.start_busy(2, "32M")?;
    for target in [256, 64, 300, 0, 128, 0] {
        guest.balloon_to(target)?;
    }
    guest.agent.verify("busy-stop")?;
    guest.agent.verify("verify still")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The host changes the target while the guest is inflating. Shown with Debian's kernel, whose
/// driver gives pages one by one and can be overtaken.
pub(crate) fn follows_targets_that_change_on_the_way(context: &Context) -> Result<()> {
    const TARGETS: [u64; 7] = [400, 30, 350, 0, 300, 0, 64];
    let mut guest =
        Guest::boot(&context.ballast(), Spec::debian(&context.payload, 512), &context.logs)?;
    guest.agent.command("fill kept 48M")?;
    let mut under_way = 0;
    for target in TARGETS {
        let before = guest.monitor.balloon_actual(&guest.spec)?;
        guest.monitor.set_balloon(target, &guest.spec)?;
        let reached = guest.monitor.poll("the balloon to move", BALLOON_LIMIT, |monitor| {
            let actual = monitor.balloon_actual(&guest.spec)?;
            Ok((actual != before).then_some(actual))
        })?;
        println!("{before} MiB, then {reached} on the way to {target}");
        under_way += u32::from(reached != target);
    }
    check!(under_way >= 3, "the guest was on its way {under_way} times only");
    guest.balloon_to(64)?;
    check_eq!(guest.ballooned()?, 64 * MIB);
    guest.agent.verify("verify kept")?;
    guest.balloon_to(0)?;
    check_eq!(guest.ballooned()?, 0);
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The driver is unbound (with Debian's kernel during an inflation) and bound again: in between the
/// guest has all its memory, and no data is lost.
pub(crate) fn a_driver_can_be_unloaded_and_loaded_again(context: &Context) -> Result<()> {
    const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";
    const TARGET: u64 = 320;
    for (spec, pages) in
        [(Spec::debian(&context.payload, 512), true), (Spec::new(&context.payload, 512), false)]
    {
        let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
        let names = guest.agent.command(&format!("list {DRIVER}"))?;
        let device = names.iter().find(|name| name.starts_with("virtio")).cloned();
        let device = device.ok_or_else(|| Error::Check(format!("no device in {names:?}")))?;
        guest.agent.command("fill kept 48M")?;
        let available = guest.agent.meminfo()?["MemAvailable"];
        guest.monitor.set_balloon(TARGET, &guest.spec)?;
        guest.monitor.poll("the balloon to grow", BALLOON_LIMIT, |monitor| {
            Ok((monitor.balloon_actual(&guest.spec)? > 0).then_some(()))
        })?;
        guest.agent.command(&format!("write {DRIVER}/unbind {device}"))?;
        let given = guest.balloon_counter("inflated_pages")? * host::PAGE;
        println!("{} of {TARGET} MiB were in the balloon when the driver left", given / MIB);
        check!(given > 0 && !(pages && given >= TARGET * MIB), "not in the middle: {given}");
        check_eq!(guest.ballooned()?, 0);
        guest.agent.verify("verify kept")?;
        wait_for_available(&mut guest, available)?;
        // The guest can use all of it, and no page is discarded again.
        guest.agent.command(&format!("fill all {}M", available / MIB - 40))?;
        guest.agent.verify("verify all")?;
        guest.agent.command("free all")?;

        guest.agent.command(&format!("write {DRIVER}/bind {device}"))?;
        guest.monitor.poll("the target to be reached again", BALLOON_LIMIT, |monitor| {
            Ok((monitor.balloon_actual(&guest.spec)? == TARGET).then_some(()))
        })?;
        check_eq!(guest.ballooned()?, TARGET * MIB);
        guest.agent.verify("verify kept")?;
        guest.balloon_to(0)?;
        guest.agent.verify("verify kept")?;
        check_eq!(guest.power_off()?.code(), Some(0));
    }
    Ok(())
}

/// Waits until the guest has about that much memory available again. Pages of 2 MiB that
/// are freed in numbers rest in the lists of each CPU, up to an eighth of memory, and leave them in
/// the course of seconds (Linux, `decay_pcp_high`).
fn wait_for_available(guest: &mut Guest, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + BALLOON_LIMIT;
    loop {
        let now = guest.agent.meminfo()?["MemAvailable"];
        if now + 8 * MIB >= bytes {
            return Ok(());
        }
        check!(Instant::now() < deadline, "{bytes} bytes were available, {now} are now");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Targets above the guest's memory are rejected and change nothing.
pub(crate) fn rejects_invalid_targets(context: &Context) -> Result<()> {
    let mut guest = boot(context, 256)?;
    let api = guest.monitor.api().clone();
    for body in [
        json!({ "amount_mib": 257 }),
        json!({ "amount_mib": u32::MAX }),
        json!({ "amount_mib": -1 }),
        json!({ "amount_mib": "64" }),
        json!({ "amount_mib": 64, "surprise": true }),
        json!({}),
    ] {
        let response = api.request("PATCH", "/balloon", Some(&body.to_string()))?;
        check!(
            response.status == 400,
            "{body} was answered {}: {}",
            response.status,
            response.text()
        );
        check!(response.fault_message().is_some(), "{body}: {}", response.text());
    }
    check_eq!(guest.monitor.balloon_actual(&guest.spec)?, 0);
    match guest.monitor.set_balloon(300, &guest.spec) {
        Err(Error::Api { status: 400, .. }) => {}
        other => return Err(Error::Check(format!("300 MiB of 256: {other:?}"))),
    }
    guest.balloon_to(32)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
