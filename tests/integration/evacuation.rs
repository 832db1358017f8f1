// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole blocks: taken first, made where there are none, and vacated on request.

use harness::guest::Guest;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// From a guest whose free memory is all in single pages, the host gains what was given up, as
/// whole blocks, and what stays is huge pages still.
pub(crate) fn blocks_from_a_fragmented_guest(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 512), &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("file-fill crumbs 380M")?;
    guest.agent.command("file-punch crumbs 1")?;
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
    guest.agent.verify("file-verify crumbs")?;
    guest.balloon_to(0)?;
    guest.agent.verify("file-verify crumbs")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Blocks with zram pages, page cache and anonymous memory in them are vacated while programs use
/// and check that memory.
pub(crate) fn blocks_in_use_are_vacated(context: &Context) -> Result<()> {
    const PLACES: [u64; 4] = [192 * MIB, 320 * MIB, 448 * MIB, 576 * MIB];
    const BLOCKS: u64 = 8;
    const ALL: u64 = BLOCKS * PLACES.len() as u64;
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 768) };
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.touch_everything()?;
    guest.agent.command("zram-fill 0 128M")?;
    guest.agent.command("file-fill crumbs 420M")?;
    guest.agent.command("file-punch crumbs 1")?;
    guest.agent.command("busy-start 2 24M")?;
    let before = host::settled_free()?;
    let api = guest.monitor.api();
    let mut reports = Vec::new();
    for start in PLACES {
        let body = json!({ "start": start, "blocks": BLOCKS });
        let answer = api.put("/memory/evacuate", &body)?;
        let report: Value = serde_json::from_slice(&answer.body)
            .map_err(|e| Error::Check(format!("{e}: {}", answer.text())))?;
        println!("{} MiB: {report}", start / MIB);
        reports.push(report);
    }
    let count = |name: &str| reports.iter().filter_map(|r| r[name].as_u64()).sum::<u64>();
    let gained = host::settled_free()?.saturating_sub(before);
    println!("{} of {ALL} vacated; the host gained {} MiB", count("vacated"), gained / MIB);
    check_eq!(count("vacated") + count("busy"), ALL);
    check!(count("vacated") >= ALL / 2, "{reports:?}");
    check!(count("migrated_lru") + count("migrated_zsmalloc") > 0, "nothing was in the way?");
    check!(gained >= count("vacated") * 2 * MIB / 10 * 8, "gained {} MiB", gained / MIB);
    guest.agent.verify("busy-stop")?;
    guest.agent.verify("zram-verify 0")?;
    guest.agent.verify("file-verify crumbs")?;
    guest.balloon_to(0)?;
    guest.agent.verify("file-verify crumbs")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Ranges outside memory, not aligned, or empty are refused.
pub(crate) fn ranges_that_make_no_sense(context: &Context) -> Result<()> {
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
