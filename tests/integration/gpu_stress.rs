// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All users and movers of GPU memory at the same time, for the duration of `--stress`.

use std::time::Instant;

use harness::guest::{CMA, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::compaction::{self, number};

use crate::gpu::COUNTERS;

const MIB: u64 = 1 << 20;
const BALLOON_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";
const GPU_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_gpu";

/// Sizes of the balloon in turn, in MiB.
const BALLOON_MIB: [u64; 4] = [96, 0, 160, 32];
const CMA_MIB: u64 = 128;
/// What programs need in each round: with the largest balloon more than is free.
const PRESSURE_MIB: u64 = 200;
/// Contiguous memory that is taken and given back in turn, in pages.
const CONTIGUOUS_PAGES: u64 = 32 << 8;

/// A client draws, flushes and flips; memory is compacted all the time and contiguous memory is
/// made; the balloon goes up and down, and its driver comes and goes; the host has blocks evacuated
/// and passes run; programs need more memory than is free; zram is written; buffers come, are
/// exported, imported and go. No byte is lost, no process is killed, and the kernel warns of nothing.
pub(crate) fn everything_at_once(context: &Context) -> Result<()> {
    let cpus = context.stress_cpus;
    let mut spec = Spec { cpus, ..Spec::new(&context.payload, 640) }.with_gpu(640, 480, 2);
    spec.more.insert("memory".into(), json!({ "cma_mib": CMA_MIB }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let balloon = device_of(&mut guest, BALLOON_DRIVER)?;
    let region = number(&guest.monitor.api().get("/memory/cma")?, "/start")?;
    guest.agent.command("gpu-fill kept 96M dumb")?;
    guest.agent.command("gpu-punch kept")?;
    guest.agent.command("zram-fill 0 64M")?;
    let before = guest.agent.vmstat(COUNTERS)?;
    guest.agent.command("screen-start 0")?;
    guest.agent.command("repeat-start compaction /proc/sys/vm/compact_memory 1")?;
    guest.agent.command(&format!(
        "repeat-start contiguous {CMA}/alloc {CONTIGUOUS_PAGES} {CMA}/free {CONTIGUOUS_PAGES}"
    ))?;

    let started = Instant::now();
    let (mut rounds, mut frames, mut evacuated) = (0_usize, 0, 0);
    while rounds < 2 || started.elapsed() < context.stress {
        guest.monitor.set_balloon(BALLOON_MIB[rounds % BALLOON_MIB.len()], &guest.spec)?;
        if rounds % 5 == 4 {
            guest.agent.command(&format!("write {BALLOON_DRIVER}/unbind {balloon}"))?;
            guest.agent.command(&format!("write {BALLOON_DRIVER}/bind {balloon}"))?;
        }
        if rounds % 2 == 0 {
            evacuated += evacuate(&guest, region)?;
        } else {
            let body = json!({ "wait": false, "budget_ms": 4000 });
            guest.monitor.api().put("/memory/compact", &body)?;
        }
        one_round(&mut guest, rounds)?;
        guest.monitor.api().request("DELETE", "/memory/compact", None)?;
        compaction::finish(&mut guest)?;
        let client = guest.agent.figures("screen-count")?;
        check_eq!(client["damaged"], 0);
        check!(client["frames"] > frames, "the client stands still: {client:?}");
        frames = client["frames"];
        guest.check_kernel_is_content()?;
        rounds += 1;
    }

    let contiguous = guest.agent.figures("repeat-stop contiguous")?;
    let compactions = guest.agent.figures("repeat-stop compaction")?;
    let client = guest.agent.figures("screen-stop")?;
    guest.balloon_to(0)?;
    let after = guest.agent.vmstat(COUNTERS)?;
    let [killed] = guest.agent.vmstat(["oom_kill"])?;
    println!(
        "{rounds} rounds in {} s; {evacuated} blocks evacuated; compactions {compactions:?}, contiguous {contiguous:?}; client \
         {client:?}; GPU pages moved, failed: {before:?}, then {after:?}; killed: {killed}",
        started.elapsed().as_secs()
    );
    check_eq!(client["damaged"], 0);
    check!(after[0] - before[0] > client["pages"] / client["frames"].max(1), "hardly a page moved");
    check!(evacuated > 0, "no block was evacuated");
    check!(compactions["rounds"] > 0 && compactions["refused"] == 0, "{compactions:?}");
    check!(contiguous["rounds"] * 2 > contiguous["refused"], "{contiguous:?}");
    check_eq!(killed, 0);
    guest.agent.verify("gpu-verify kept")?;
    guest.agent.verify("zram-verify 0")?;
    let status = guest.monitor.api().get("/gpu")?;
    check_eq!(status["counters"]["migrations_failed"], 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The name of the one device that a driver has.
fn device_of(guest: &mut Guest, driver: &str) -> Result<String> {
    let names = guest.agent.command(&format!("list {driver}"))?;
    let device = names.iter().find(|name| name.starts_with("virtio")).cloned();
    device.ok_or_else(|| Error::Check(format!("no device in {names:?}")))
}

/// Has the blocks of the region evacuated; how many the guest gave up.
fn evacuate(guest: &Guest, region: u64) -> Result<u64> {
    let body = json!({ "start": region, "blocks": CMA_MIB / 2 });
    let answer = guest.monitor.api().put("/memory/evacuate", &body)?;
    let report: Value = serde_json::from_slice(&answer.body)
        .map_err(|e| Error::Check(format!("{e}: {}", answer.text())))?;
    Ok(report["evacuated"].as_u64().unwrap_or(0))
}

/// Buffers of one kind come and go, zram is rewritten, and everything that stays is checked.
fn one_round(guest: &mut Guest, round: usize) -> Result<()> {
    let agent = &mut guest.agent;
    let kind = ["dumb", "blob"][round % 2];
    agent.command(&format!("gpu-fill passing 24M {kind}"))?;
    agent.command("gpu-export kept 20")?;
    agent.command("gpu-punch passing")?;
    agent.verify("gpu-import kept")?;
    agent.command(&format!("fill pressure {PRESSURE_MIB}M"))?;
    agent.command("zram-rewrite 0")?;
    agent.verify("gpu-verify passing")?;
    agent.verify("gpu-verify kept")?;
    agent.command("gpu-unexport kept")?;
    agent.verify("verify pressure")?;
    agent.command("free pressure")?;
    agent.verify("zram-verify 0")?;
    agent.command("gpu-free passing").map(drop)
}

/// The driver is unbound while buffers are mapped and exported and their pages move, and bound again:
/// everything is freed, and the next buffers are as good as the first.
pub(crate) fn the_driver_comes_and_goes(context: &Context) -> Result<()> {
    let mut spec = Spec { cpus: 2, ..Spec::new(&context.payload, 512) }.with_gpu(640, 480, 1);
    spec.more.insert("memory".into(), json!({ "cma_mib": CMA_MIB }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let device = device_of(&mut guest, GPU_DRIVER)?;
    let available = guest.agent.meminfo()?["MemAvailable"];
    guest.agent.command("repeat-start compaction /proc/sys/vm/compact_memory 1")?;
    guest.agent.command(&format!(
        "repeat-start contiguous {CMA}/alloc {CONTIGUOUS_PAGES} {CMA}/free {CONTIGUOUS_PAGES}"
    ))?;
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || started.elapsed() < context.stress {
        let kind = ["dumb", "blob"][rounds % 2];
        guest.agent.command(&format!("gpu-fill all 96M {kind}"))?;
        guest.agent.command("gpu-punch all")?;
        guest.agent.command("gpu-export all 20")?;
        guest.agent.verify("gpu-import all")?;
        guest.agent.verify("gpu-verify all")?;
        guest.agent.command(&format!("write {GPU_DRIVER}/unbind {device}"))?;
        guest.agent.command("gpu-unexport all")?;
        guest.agent.command("gpu-free all")?;
        guest.agent.command(&format!("write {GPU_DRIVER}/bind {device}"))?;
        guest.check_kernel_is_content()?;
        rounds += 1;
    }
    let contiguous = guest.agent.figures("repeat-stop contiguous")?;
    let compactions = guest.agent.figures("repeat-stop compaction")?;
    let [moved, failed] = guest.agent.vmstat(COUNTERS)?;
    let left = guest.agent.meminfo()?["MemAvailable"];
    println!(
        "{rounds} rounds in {} s; compactions {compactions:?}, contiguous {contiguous:?}; GPU pages \
         moved {moved}, failed {failed}; available {} MiB, then {}",
        started.elapsed().as_secs(),
        available / MIB,
        left / MIB
    );
    check!(moved > 0, "no page moved");
    check!(left + 24 * MIB > available, "{} MiB are missing", (available - left) / MIB);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
