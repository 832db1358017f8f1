// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole blocks: taken first, made if none are free, and evacuated on request.

use harness::guest::Guest;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Asks the guest to evacuate `blocks` blocks from `start` on.
fn evacuate(guest: &Guest, start: u64, blocks: u64) -> Result<Value> {
    let body = json!({ "start": start, "blocks": blocks });
    let answer = guest.monitor.api().put("/memory/evacuate", &body)?;
    let report = serde_json::from_slice(&answer.body)
        .map_err(|e| Error::Check(format!("{e}: {}", answer.text())))?;
    println!("{} MiB, {blocks} blocks: {report}", start / MIB);
    Ok(report)
}

/// Blocks of which some pages are in the balloon, and others are not.
fn partly_ballooned(guest: &Guest) -> Result<Vec<u64>> {
    let map = guest.monitor.api().get("/memory/blocks")?;
    let runs = map["runs"].as_array().cloned().unwrap_or_default();
    let part = |run: &&Value| run["ballooned"].as_u64().is_some_and(|n| (1..512).contains(&n));
    let blocks = runs.iter().filter(part).filter_map(|run| {
        let (first, blocks) = (run["first"].as_u64()?, run["blocks"].as_u64()?);
        Some(first..first + blocks)
    });
    Ok(blocks.flatten().collect())
}

/// From a guest whose free memory is all in single pages, the host gains what was given up, as
/// whole blocks, and what stays is huge pages still.
pub(crate) fn blocks_from_a_fragmented_guest(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 512), &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 380M")?;
    guest.agent.command("file-punch pieces 1")?;
    let (free, in_blocks) = (host::settled_free()?, host::free_in_blocks()?);
    let (before, _) = host::mappings(guest.monitor.pid(), 64 * MIB)?;
    guest.balloon_to(160)?;
    let [blocks] = guest.agent.vmstat(["balloon_block_inflate"])?;
    check!(blocks >= 76, "only {blocks} of 80 blocks were given up whole");
    let gained = host::settled_free()?.saturating_sub(free);
    let gained_blocks = host::free_in_blocks()?.saturating_sub(in_blocks);
    let (memory, _) = host::mappings(guest.monitor.pid(), 64 * MIB)?;
    println!(
        "of {} MiB resident, gained {} MiB, {} MiB of it as blocks; {} of {} MiB that stay are \
         huge-backed",
        before.rss / MIB,
        gained / MIB,
        gained_blocks / MIB,
        memory.huge / MIB,
        memory.rss / MIB
    );
    // Compaction puts pages where the guest has not been before: what it took there is not gained.
    check!(memory.rss <= (512 - 160 + 4) * MIB, "{} MiB stay resident", memory.rss / MIB);
    let given_up = before.rss.saturating_sub(memory.rss);
    check!(given_up >= 128 * MIB, "resident size fell by {} MiB", given_up / MIB);
    check!(gained >= given_up / 100 * 95, "gained {} of {} MiB", gained / MIB, given_up / MIB);
    check!(memory.huge >= memory.rss / 100 * 95, "{memory:?}");
    guest.agent.verify("file-verify pieces")?;
    guest.balloon_to(0)?;
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Blocks with balloon pages, zram pages, page cache and anonymous memory in them are evacuated
/// while programs use and check that memory.
pub(crate) fn evacuates_blocks_in_use(context: &Context) -> Result<()> {
    const PLACES: [u64; 4] = [192 * MIB, 320 * MIB, 448 * MIB, 576 * MIB];
    const BLOCKS: u64 = 8;
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 768) };
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 420M")?;
    guest.agent.command("file-punch pieces 1")?;
    // These fill the holes that were just made.
    guest.agent.command("zram-fill 0 128M")?;
    guest.agent.start_busy(2, "24M")?;
    // Half a block cannot be given up whole: it is single pages, which lie where others lie too.
    guest.balloon_to(17)?;
    let shared = partly_ballooned(&guest)?;
    println!("blocks shared with the balloon: {shared:?}");
    check!(!shared.is_empty(), "no block has pages of the balloon and others");
    let before = host::settled_free()?;
    let ballooned = guest.ballooned()?;
    let mut reports = Vec::new();
    for block in shared.iter().take(4) {
        reports.push(evacuate(&guest, block * 2 * MIB, 1)?);
    }
    let count = |reports: &[Value], name: &str| {
        reports.iter().filter_map(|report| report[name].as_u64()).sum::<u64>()
    };
    check!(count(&reports, "evacuated") > 0, "{reports:?}");
    check!(count(&reports, "migrated_balloon") > 0, "no balloon page was in the way? {reports:?}");
    let pairs = guest.balloon_counter("migrated_pages")?;
    check!(pairs > 0, "the device saw no balloon page move");
    for start in PLACES {
        reports.push(evacuate(&guest, start, BLOCKS)?);
    }
    let asked = reports.iter().filter_map(|report| report["per_block"].as_array()).flatten();
    let asked = asked.count() as u64;
    let gained = host::settled_free()?.saturating_sub(before);
    let evacuated = count(&reports, "evacuated");
    println!("{evacuated} of {asked} evacuated; the host gained {} MiB", gained / MIB);
    check_eq!(evacuated + count(&reports, "busy"), asked);
    check!(evacuated >= asked / 2, "{reports:?}");
    for owner in ["migrated_lru", "migrated_zsmalloc"] {
        check!(count(&reports, owner) > 0, "{owner}: nothing was in the way? {reports:?}");
    }
    // Blocks that were in the balloon already are as good as evacuated, and gain nothing.
    let given = guest.ballooned()?.saturating_sub(ballooned);
    check!(gained >= given / 10 * 8, "gained {} of {} MiB", gained / MIB, given / MIB);
    guest.agent.verify("busy-stop")?;
    guest.agent.verify("zram-verify 0")?;
    guest.agent.verify("file-verify pieces")?;
    guest.balloon_to(0)?;
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A pinned page keeps its block from being evacuated; the answer reports it, and nothing is given
/// up. It is the pin alone: without it the block is evacuated.
pub(crate) fn a_block_with_a_pinned_page_is_busy(context: &Context) -> Result<()> {
    const PAGE: u64 = 5000;
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 256), &context.logs)?;
    guest.agent.command("fill kept 40M")?;
    guest.agent.command(&format!("pin kept {PAGE}"))?;
    let place = |guest: &mut Guest| -> Result<u64> {
        Ok(guest.agent.figures(&format!("where kept {PAGE}"))?["address"])
    };
    let pinned = place(&mut guest)?;
    let block = pinned / (2 * MIB) * (2 * MIB);
    println!("page {PAGE} is pinned at {pinned:#x}");
    let report = evacuate(&guest, block, 1)?;
    check_eq!(report["per_block"], json!(["busy"]));
    check_eq!((report["evacuated"].as_u64(), report["busy"].as_u64()), (Some(0), Some(1)));
    check_eq!(place(&mut guest)?, pinned);
    check_eq!(guest.ballooned()?, 0);
    guest.agent.verify("verify kept")?;

    guest.agent.command(&format!("unpin kept {PAGE}"))?;
    let report = evacuate(&guest, block, 1)?;
    check_eq!(report["per_block"], json!(["evacuated"]));
    check_eq!(guest.ballooned()?, 2 * MIB);
    let moved = place(&mut guest)?;
    check!(moved / (2 * MIB) != pinned / (2 * MIB), "the page is still at {moved:#x}");
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The results of the other tests here depend on our patches: with Debian's kernel there are no
/// whole blocks, no evacuation, and no counters by owner. Single pages that its driver gives up
/// still become free on the host.
pub(crate) fn without_our_patches_there_are_no_blocks(context: &Context) -> Result<()> {
    const BALLOON_MIB: u64 = 128;
    let mut guest =
        Guest::boot(&context.ballast(), Spec::debian(&context.payload, 512), &context.logs)?;
    let ours = "movable_migrate_balloon movable_fail_balloon balloon_block_inflate";
    let counters = guest.agent.command(&format!("pick /proc/vmstat balloon_migrate {ours}"))?;
    let names: Vec<_> = counters.iter().filter_map(|line| line.split(' ').next()).collect();
    check_eq!(names, ["balloon_migrate"]);
    let body = json!({ "start": 192 * MIB, "blocks": 8 }).to_string();
    let refused = guest.monitor.api().request("PUT", "/memory/evacuate", Some(&body))?;
    check_eq!(refused.status, 400);
    let why = refused.fault_message().unwrap_or_default();
    check!(why.contains("does not support evacuation"), "{why}");

    guest.touch_everything()?;
    guest.agent.command("file-fill pieces 300M")?;
    guest.agent.command("file-punch pieces 1")?;
    let free = host::settled_free()?;
    guest.balloon_to(BALLOON_MIB)?;
    let gained = host::settled_free()?.saturating_sub(free);
    let (memory, _) = host::mappings(guest.monitor.pid(), 64 * MIB)?;
    let whole = guest.balloon_counter("inflation/whole_blocks")?;
    println!(
        "of {BALLOON_MIB} MiB given up the host gained {} MiB, in {whole} whole blocks and single \
         pages; {} of {} MiB that stay are huge-backed",
        gained / MIB,
        memory.huge / MIB,
        memory.rss / MIB
    );
    check_eq!(guest.balloon_counter("inflated_blocks")?, 0);
    check_eq!(guest.balloon_counter("block_requests")?, 0);
    check!(whole < BALLOON_MIB / 2 / 2, "{whole} whole blocks came of single pages");
    check!(memory.huge < memory.rss / 100 * 95, "{memory:?}");
    check!(gained >= BALLOON_MIB * MIB / 100 * 95, "gained {gained} of {BALLOON_MIB} MiB");
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Ranges outside memory, not aligned, or empty are refused.
pub(crate) fn rejects_invalid_ranges(context: &Context) -> Result<()> {
    let guest = Guest::boot(&context.ballast(), Spec::new(&context.payload, 256), &context.logs)?;
    let api = guest.monitor.api();
    for body in [
        json!({ "start": 256 * MIB, "blocks": 1 }),
        json!({ "start": 4096, "blocks": 1 }),
        json!({ "start": 0, "blocks": 0 }),
        json!({ "start": 254 * MIB, "blocks": 2 }),
        json!({ "start": !0x1f_ffff_u64, "blocks": 1 }),
        json!({ "blocks": 1 }),
    ] {
        let response = api.request("PUT", "/memory/evacuate", Some(&body.to_string()))?;
        check!(response.status == 400, "{body}: {} {}", response.status, response.text());
        check!(response.fault_message().is_some(), "{body}: {}", response.text());
    }
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
