// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All users and movers of GPU memory at the same time, for the duration of `--stress`.

use std::time::Instant;

use harness::guest::Guest;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Result, check, check_eq};
use serde_json::json;

use crate::contiguous::CMA;
use crate::gpu::COUNTERS;

/// Sizes of the balloon in turn, in MiB.
const BALLOON_MIB: [u64; 4] = [96, 0, 160, 32];
/// Contiguous memory that is taken and given back in turn, in pages.
const CONTIGUOUS_PAGES: u64 = 32 << 8;

/// A client draws, flushes and flips; memory is compacted all the time and contiguous memory is
/// made; the balloon goes up and down; zram is written; buffers come, are exported and go. No byte
/// is lost, no process is killed, and the kernel warns of nothing.
pub(crate) fn everything_at_once(context: &Context) -> Result<()> {
    // More vCPUs than the host has CPUs would mostly wait for each other.
    let cpus = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) { 2 } else { 1 };
    let mut spec = Spec { cpus, ..Spec::new(&context.payload, 640) }.with_gpu(640, 480, 2);
    spec.more.insert("memory".into(), json!({ "cma_mib": 128 }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
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
    let (mut rounds, mut frames) = (0_usize, 0);
    while rounds < 2 || started.elapsed() < context.stress {
        guest.monitor.set_balloon(BALLOON_MIB[rounds % BALLOON_MIB.len()], &guest.spec)?;
        one_round(&mut guest, rounds)?;
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
        "{rounds} rounds in {} s; compactions {compactions:?}, contiguous {contiguous:?}; client \
         {client:?}; GPU pages moved, failed: {before:?}, then {after:?}; killed: {killed}",
        started.elapsed().as_secs()
    );
    check_eq!(client["damaged"], 0);
    check!(after[0] - before[0] > client["pages"] / client["frames"].max(1), "hardly a page moved");
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

/// Buffers of one kind come and go, zram is rewritten, and everything that stays is checked.
fn one_round(guest: &mut Guest, round: usize) -> Result<()> {
    let agent = &mut guest.agent;
    let kind = ["dumb", "blob"][round % 2];
    agent.command(&format!("gpu-fill passing 24M {kind}"))?;
    agent.command("gpu-export kept 20")?;
    agent.command("gpu-punch passing")?;
    agent.command("zram-rewrite 0")?;
    agent.verify("gpu-verify passing")?;
    agent.verify("gpu-verify kept")?;
    agent.command("gpu-unexport kept")?;
    agent.verify("zram-verify 0")?;
    agent.command("gpu-free passing").map(drop)
}
