// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GPU buffers and contiguous memory: they fill the CMA region, leave it when they are exported, and
//! make way for contiguous allocations; and they are charged to a control group.

use std::time::Duration;

use harness::guest::{CMA, Guest};
use harness::limits;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Result, check, check_eq};
use serde_json::json;

use crate::gpu::{COUNTERS, compact};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn boot_with_cma(context: &Context, memory_mib: u64, cma_mib: u64) -> Result<Guest> {
    let mut spec = Spec::new(&context.payload, memory_mib).with_gpu(640, 480, 1);
    spec.more.insert("memory".into(), json!({ "cma_mib": cma_mib }));
    Guest::boot(&context.ballast(), spec, &context.logs)
}

fn free_cma(guest: &mut Guest) -> Result<u64> {
    Ok(guest.agent.vmstat(["nr_free_cma"])?[0] * PAGE)
}

/// GPU buffers fill the CMA region before memory is refused, and no process is killed.
pub(crate) fn cma_is_filled_before_memory_runs_out(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 128;
    let mut guest = boot_with_cma(context, 384, CMA_MIB)?;
    let idle = free_cma(&mut guest)?;
    check!(idle > CMA_MIB * MIB / 10 * 9, "{} MiB of CMA are free at first", idle / MIB);
    // On the debug kernel, which needs memory of its own for each buffer, it may be such an allocation
    // that finds nothing left: that ends in a kill.
    guest.agent.command("program-start /init bystander 1M")?;
    let limit = Duration::from_secs(300);
    let filled = guest.agent.figures_within("gpu-fill all 384M dumb", limit)?;
    let left = free_cma(&mut guest)?;
    let [free, killed] = guest.agent.vmstat(["nr_free_pages", "oom_kill"])?;
    let other = (free * PAGE).saturating_sub(left);
    let in_cma = guest.monitor.api().get("/gpu")?["cma_pages"].as_u64().unwrap_or(0) * PAGE;
    println!(
        "{filled:?}; at the first refusal {} KiB of CMA and {} KiB of other memory are free, {} MiB \
         of CMA in GPU buffers",
        left >> 10,
        other >> 10,
        in_cma / MIB
    );
    check!(filled["refused"] + filled["killed"] > 0, "there was memory for everything");
    check!(left < 2 * MIB, "{} KiB of CMA are free", left >> 10);
    // The kernel can go on: at 4.4 MiB, the lowest watermark after fallbacks between pageblocks, its
    // next allocation would call the OOM killer.
    check!(other > 9 * MIB / 2, "{} KiB of other memory are free", other >> 10);
    check!(in_cma > CMA_MIB * MIB / 10 * 9, "{} MiB of CMA in buffers", in_cma / MIB);
    check_eq!(killed, filled["killed"]);
    check!(killed == 0 || limits::debug_kernel(), "{killed} processes were killed");
    // Without any free memory they could not be mapped for the check.
    guest.agent.command("gpu-punch all")?;
    guest.agent.verify("gpu-verify all")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// What is exported stays where it is, so nothing of it may lie in the CMA region: an export moves
/// those pages, and the region can still be allocated as a whole.
pub(crate) fn exported_buffers_leave_cma(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 64;
    let mut guest = boot_with_cma(context, 384, CMA_MIB)?;
    // Ordinary memory becomes scarce first, so that buffers go to the region.
    guest.agent.command("fill ordinary 200M")?;
    guest.agent.command("gpu-fill shared 48M blob")?;
    let in_cma = |guest: &Guest| -> Result<u64> {
        Ok(guest.monitor.api().get("/gpu")?["cma_pages"].as_u64().unwrap_or(0))
    };
    let before = in_cma(&guest)?;
    check!(before > 1000, "only {before} pages of the buffers are in the region");
    guest.agent.command("free ordinary")?;
    let exported = guest.agent.figures("gpu-export shared 100000")?["exported"];
    check_eq!(exported, 48 * MIB / PAGE);
    println!("{before} pages were in the region, {} are after the export", in_cma(&guest)?);
    check_eq!(in_cma(&guest)?, 0);
    guest.agent.command(&format!("write {CMA}/alloc {}", CMA_MIB << 8))?;
    guest.agent.command(&format!("write {CMA}/free {}", CMA_MIB << 8))?;
    guest.agent.verify("gpu-verify shared")?;
    guest.agent.command("gpu-unexport shared")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Buffers count for the memory control group of the program that makes them: it gets no more of
/// them than its limit, and no process is killed.
pub(crate) fn buffers_are_charged_to_a_control_group(context: &Context) -> Result<()> {
    const LIMIT_MIB: u64 = 64;
    let spec = Spec::new(&context.payload, 384).with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command(&format!("cgroup-enter limited {LIMIT_MIB}M"))?;
    let before = guest.agent.figures("cgroup-used limited")?;
    let filled = guest.agent.figures("gpu-fill limited 160M dumb")?;
    let full = guest.agent.figures("cgroup-used limited")?;
    println!("{filled:?}; charged {before:?}, then {full:?}");
    check!(filled["refused"] > 0, "160 MiB of buffers fit into {LIMIT_MIB} MiB");
    check!(filled["pages"] * PAGE <= LIMIT_MIB * MIB, "{filled:?}");
    check!(full["kernel"] >= filled["pages"] * PAGE, "{full:?}");
    check_eq!(guest.agent.vmstat(["oom_kill"])?[0], 0);
    // Pages that move stay charged, once.
    compact(&mut guest)?;
    let moved = guest.agent.figures("cgroup-used limited")?;
    check!(moved["kernel"].abs_diff(full["kernel"]) < 2 * MIB, "{full:?}, then {moved:?}");
    guest.agent.verify("gpu-verify limited")?;
    guest.agent.command("gpu-free limited")?;
    let agent = &mut guest.agent;
    guest.monitor.poll("uncharged buffers", Duration::from_secs(30), |_| {
        let now = agent.figures("cgroup-used limited")?;
        Ok((now["kernel"] < full["kernel"] / 4).then_some(()))
    })?;
    guest.agent.command("cgroup-leave")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Contiguous memory is allocated from a region full of GPU, zram and balloon pages, even with
/// little free memory: the balloon shrinks, and no process is killed.
pub(crate) fn contiguous_memory_over_gpu_pages(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 128;
    const WANTED_PAGES: u64 = 64 << 8;
    const SCARCE_MIB: u64 = 30;
    let mut guest = boot_with_cma(context, 640, CMA_MIB)?;
    guest.agent.command("zram-fill 0 128M")?;
    guest.agent.command("gpu-fill early 160M dumb")?;
    guest.balloon_to(96)?;
    for (name, keep_mib) in [("plenty", 100), ("scarce", SCARCE_MIB)] {
        let free = guest.agent.meminfo()?["MemFree"] / MIB;
        if free > keep_mib {
            guest.agent.command(&format!("gpu-fill {name} {}M dumb", free - keep_mib))?;
        }
        let free = guest.agent.meminfo()?["MemFree"] / MIB;
        let lent = free_cma(&mut guest)?;
        let counters = [COUNTERS[0], "movable_migrate_zsmalloc", "balloon_block_release"];
        let before = guest.agent.vmstat(counters)?;
        check!(lent < CMA_MIB / 2 * MIB, "CMA is not lent out: {} MiB are free", lent / MIB);
        guest.agent.command(&format!("write {CMA}/alloc {WANTED_PAGES}"))?;
        let used = guest.agent.command(&format!("read {CMA}/used"))?.join("");
        let after = guest.agent.vmstat(counters)?;
        let [killed] = guest.agent.vmstat(["oom_kill"])?;
        println!(
            "{name}: {free} MiB free in all, {} MiB of CMA; contiguous pages: {used}; {counters:?}: \
             {before:?}, then {after:?}; killed: {killed}",
            lent / MIB
        );
        check_eq!(used, WANTED_PAGES.to_string());
        check_eq!(killed, 0);
        guest.agent.verify("gpu-verify early")?;
        guest.agent.verify("zram-verify 0")?;
        guest.agent.command(&format!("write {CMA}/free {WANTED_PAGES}"))?;
    }
    guest.balloon_to(0)?;
    guest.agent.verify("gpu-verify early")?;
    guest.agent.verify("gpu-verify scarce")?;
    guest.agent.verify("zram-verify 0")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A request for contiguous memory that finds no room fails without a kill, and leaves the kernel memory
/// to go on: it cannot use what pages have left in the region.
pub(crate) fn failed_requests_leave_the_kernel_memory(context: &Context) -> Result<()> {
    const CMA_MIB: u64 = 128;
    const WANTED_PAGES: u64 = 64 << 8;
    const SCARCE_MIB: u64 = 30;
    let mut guest = boot_with_cma(context, 640, CMA_MIB)?;
    guest.agent.command("zram-fill 0 128M")?;
    guest.agent.command("program-start /init bystander 1M")?;
    let free = guest.agent.meminfo()?["MemFree"] / MIB;
    guest.agent.command(&format!("gpu-fill all {}M dumb", free - SCARCE_MIB))?;
    let other = |guest: &mut Guest| -> Result<u64> {
        let [free, cma] = guest.agent.vmstat(["nr_free_pages", "nr_free_cma"])?;
        Ok(free.saturating_sub(cma) * PAGE)
    };
    let before = (other(&mut guest)?, free_cma(&mut guest)?);
    for _ in 0..3 {
        let refusal = guest.agent.command(&format!("write {CMA}/alloc {WANTED_PAGES}")).err();
        check!(refusal.is_some(), "there was room for the request");
        let after = (other(&mut guest)?, free_cma(&mut guest)?);
        println!(
            "other memory and CMA, free: {} and {} KiB before, {} and {} KiB after: {refusal:?}",
            before.0 >> 10,
            before.1 >> 10,
            after.0 >> 10,
            after.1 >> 10
        );
        // What pages left in the region before a request failed would be lost to the kernel.
        check!(after.0 + 6 * MIB > before.0, "{} KiB of other memory are free", after.0 >> 10);
    }
    check_eq!(guest.agent.command(&format!("read {CMA}/used"))?.join(""), "0");
    check_eq!(guest.agent.vmstat(["oom_kill"])?[0], 0);
    guest.agent.verify("zram-verify 0")?;
    guest.agent.command("gpu-punch all")?;
    guest.agent.verify("gpu-verify all")?;
    // With room the same request succeeds.
    guest.agent.command(&format!("write {CMA}/alloc {WANTED_PAGES}"))?;
    guest.agent.command(&format!("write {CMA}/free {WANTED_PAGES}"))?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
