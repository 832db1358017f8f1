// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory policy with real guests: a client that also sets the balloon, and hosts without
//! features that a policy or parking needs.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::confine::{self, MemoryGroup};
use harness::guest::Guest;
use harness::limits::patient;
use harness::monitor::{Monitor, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::compaction::number;

const MIB: u64 = 1 << 20;
/// For a policy to do what it should.
const LIMIT: Duration = Duration::from_secs(180);

/// A guest of that size whose machine follows `policy`, in `group` if there is one.
fn boot(
    context: &Context,
    memory_mib: u64,
    policy: &Value,
    group: Option<&MemoryGroup>,
) -> Result<Guest> {
    boot_in(context, &context.logs, memory_mib, policy, group)
}

/// The same, with logs in a folder of its own.
fn boot_in(
    context: &Context,
    logs: &Path,
    memory_mib: u64,
    policy: &Value,
    group: Option<&MemoryGroup>,
) -> Result<Guest> {
    let mut spec = Spec::new(&context.payload, memory_mib);
    spec.more.insert("memory".into(), json!({ "policy": policy }));
    let monitor = Monitor::start_confined(&context.ballast(), &spec, logs, |command| {
        group.map_or(Ok(()), |group| group.admit(command))
    })?;
    Guest::attach(monitor, spec)
}

fn policy(guest: &Guest) -> Result<Value> {
    guest.monitor.api().get("/memory/policy")
}

/// Waits until `reached` holds for the policy's status.
fn until(guest: &Guest, what: &str, reached: impl Fn(&Value) -> bool) -> Result<Value> {
    let (began, limit) = (Instant::now(), patient(LIMIT));
    loop {
        let status = policy(guest)?;
        if reached(&status) {
            return Ok(status);
        }
        if began.elapsed() > limit {
            return Err(Error::Check(format!("{what}: {status:#}")));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or(0)
}

/// A ceiling is kept by the balloon, until the client sets its target; then that stands.
pub(crate) fn the_clients_balloon_wins(context: &Context) -> Result<()> {
    let ceiling = json!({
        "preset": "gentle",
        "floor_mib": 64,
        "ceiling_mib": 128,
        "host_reserve_mib": 1,
        "interval_ms": 200,
    });
    let mut guest = boot(context, 256, &json!({ "preset": "off" }), None)?;
    guest.touch_everything()?;
    guest.monitor.api().put("/memory/policy", &ceiling)?;
    let status = until(&guest, "the balloon grows", |status| {
        status["balloon_target_bytes"].as_u64() >= Some(64 * MIB)
    })?;
    println!("{status:#}");
    check_eq!(status["balloon_owner"], "policy");
    check!(status["decisions"].to_string().contains("ceiling 128 MiB"), "{status:#}");
    guest.balloon_to(16)?;
    let seen = count(&policy(&guest)?, "rounds");
    let status = until(&guest, "ten more rounds", |status| count(status, "rounds") > seen + 10)?;
    check_eq!(status["balloon_owner"], "client");
    check_eq!(number(&status, "/balloon_target_bytes")?, 16 * MIB);
    // Set again, it is the policy's; and off, the client's last target.
    guest.monitor.api().put("/memory/policy", &ceiling)?;
    until(&guest, "the balloon grows again", |status| {
        status["balloon_target_bytes"].as_u64() > Some(32 * MIB)
    })?;
    guest.monitor.api().put("/memory/policy", &json!({ "preset": "off" }))?;
    let began = Instant::now();
    while guest.monitor.api().get("/balloon")?["amount_mib"] != 16 {
        check!(began.elapsed() < patient(LIMIT), "{:#}", policy(&guest)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Without userfaultfd parking is rejected with the reason, and the policy works without it.
pub(crate) fn a_host_without_userfaultfd(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 192);
    spec.more.insert("memory".into(), json!({ "policy": { "preset": "dense" } }));
    let monitor = Monitor::start_confined(
        &context.ballast(),
        &spec,
        &context.logs,
        confine::without_userfaultfd,
    )?;
    let mut guest = Guest::attach(monitor, spec.clone())?;
    let status = until(&guest, "a few rounds", |status| count(status, "rounds") > 2)?;
    check!(
        status["no_eviction"].as_str().is_some_and(|why| why.contains("userfaultfd")),
        "{status:#}"
    );
    let refused = guest.monitor.api().request("PUT", "/memory/park", Some("{}"))?;
    check_eq!(refused.status, 400);
    check!(refused.text().contains("userfaultfd"), "{}", refused.text());
    guest.agent.command("ping")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A parked guest is restored on a host with little memory: it waits and is not killed.
pub(crate) fn a_host_that_is_short_when_memory_is_wanted(context: &Context) -> Result<()> {
    let group = MemoryGroup::new("short")?;
    let mut guest = boot(context, 256, &json!({ "preset": "off" }), Some(&group))?;
    guest.agent.command("text-fill kept 96M")?;
    let report = guest.monitor.api().put("/memory/park", &json!({}))?;
    println!("{}", report.text());
    let asleep = group.used()?;
    group.throttle(Some(asleep + 16 * MIB))?;
    // A fifth of it, with the throttle on.
    let figures = guest.agent.figures_within("text-touch kept 12 7", LIMIT)?;
    check_eq!(figures.get("damaged"), Some(&0));
    group.throttle(None)?;
    guest.agent.verify("text-verify kept")?;
    check_eq!(group.kills()?, 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Two guests that use more together than their control group holds: none is killed, both go on,
/// and no byte is wrong.
pub(crate) fn two_guests_compete(context: &Context) -> Result<()> {
    const ROUNDS: u64 = 6;
    let group = MemoryGroup::new("compete")?;
    // What one and a half of them have.
    group.throttle(Some(352 * MIB))?;
    group.limit(Some(384 * MIB))?;
    let dense = json!({ "preset": "dense" });
    let mut guests = Vec::new();
    for number in 0..2u64 {
        let logs = context.logs.join(number.to_string());
        std::fs::create_dir_all(&logs).map_err(Error::io("creating a folder"))?;
        guests.push((number, boot_in(context, &logs, 256, &dense, Some(&group))?));
    }
    let work = |(number, guest): &mut (u64, Guest)| -> Result<Duration> {
        guest.agent.command_within("text-fill kept 176M", LIMIT)?;
        let mut longest = Duration::ZERO;
        for round in 0..ROUNDS {
            let began = Instant::now();
            // A part that stays the same for a while, and one that does not.
            for seed in [*number + 10, *number + 100 * round] {
                let touch = format!("text-touch kept 600 {seed}");
                let figures = guest.agent.figures_within(&touch, LIMIT)?;
                check_eq!((round, figures.get("damaged")), (round, Some(&0)));
            }
            longest = longest.max(began.elapsed());
        }
        let figures = guest.agent.figures_within("text-verify kept", LIMIT)?;
        check_eq!(figures.get("damaged"), Some(&0));
        Ok(longest)
    };
    let results: Vec<Result<Duration>> = std::thread::scope(|scope| {
        let threads: Vec<_> = guests.iter_mut().map(|guest| scope.spawn(|| work(guest))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    println!("{} MiB in the group, {} killed", group.used()? / MIB, group.kills()?);
    for (_, guest) in &guests {
        let paging = guest.monitor.api().get("/memory/paging");
        println!("{:#}", paging.unwrap_or_default());
        println!("{:#}", policy(guest).unwrap_or_default());
    }
    check_eq!(group.kills()?, 0);
    for result in results {
        println!("longest round {:?}", result?);
    }
    for (_, guest) in guests {
        check_eq!(guest.power_off()?.code(), Some(0));
    }
    Ok(())
}
