// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's movable pages in our guest: pages of the balloon and of zram migrate while in use, and
//! make room for contiguous allocations.

use harness::guest::{CMA, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Result, check, check_eq};

/// Fills memory with a file and frees a random half of its pages: what the balloon gets then are
/// single pages all over memory.
fn fragment(guest: &mut Guest, file_mib: u64) -> Result<()> {
    guest.agent.command(&format!("file-fill pieces {file_mib}M"))?;
    guest.agent.command("file-punch pieces 1").map(drop)
}

fn compact(guest: &mut Guest) -> Result<()> {
    guest.agent.command("write /proc/sys/vm/compact_memory 1").map(drop)
}

/// Pages of the balloon move when the guest compacts; other memory is intact. Tested with Debian's
/// kernel, as our driver gives up whole blocks and leaves few pages to move.
pub(crate) fn balloon_pages_migrate(context: &Context) -> Result<()> {
    const BALLOON_MIB: u64 = 150;
    let mut guest =
        Guest::boot(&context.ballast(), Spec::debian(&context.payload, 512), &context.logs)?;
    guest.agent.command("fill kept 48M")?;
    fragment(&mut guest, 240)?;
    guest.balloon_to(BALLOON_MIB)?;
    guest.agent.verify("file-verify pieces")?;
    // Now the balloon's pages lie singly in free memory.
    guest.agent.command("file-free pieces")?;
    let before = guest.agent.vmstat(["balloon_migrate"])?;
    let seen_before = guest.balloon_counter("migrated_pages")?;
    compact(&mut guest)?;
    let after = guest.agent.vmstat(["balloon_migrate"])?;
    let seen = guest.balloon_counter("migrated_pages")? - seen_before;
    println!("balloon pages moved: {} before, {} after compaction", before[0], after[0]);
    println!("the device saw {seen} pairs of one page in and one page out");
    check!(after[0] > before[0], "no page of the balloon moved: {before:?}, {after:?}");
    check!(seen > 0, "the device recognised no migration");
    check_eq!(guest.monitor.balloon_actual(&guest.spec)?, BALLOON_MIB);
    check_eq!(guest.ballooned()?, BALLOON_MIB << 20);
    guest.agent.verify("verify kept")?;
    guest.balloon_to(0)?;
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Pages of zram move when the guest compacts, and read back bit for bit. Which owner's pages
/// moved is counted by our patch to the guest's kernel.
pub(crate) fn zram_pages_migrate(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 512), &context.logs)?;
    // Two devices filled in turn; one is freed, which leaves holes between the other's pages.
    guest.agent.command("zram-fill 0 96M")?;
    guest.agent.command("zram-fill 1 96M")?;
    fragment(&mut guest, 120)?;
    guest.agent.command("zram-free 1")?;
    let counters = ["movable_migrate_zsmalloc", "movable_fail_zsmalloc"];
    let before = guest.agent.vmstat(counters)?;
    compact(&mut guest)?;
    let after = guest.agent.vmstat(counters)?;
    println!("zram pages moved, failed: {before:?} before, {after:?} after compaction");
    check!(after[0] > before[0], "no page of zram moved: {before:?}, {after:?}");
    guest.agent.verify("zram-verify 0")?;
    guest.agent.verify("file-verify pieces")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// zram and balloon pages lie in the CMA region while it is idle; contiguous memory is still made
/// there, and nothing is lost.
pub(crate) fn contiguous_memory_over_zram_and_balloon_pages(context: &Context) -> Result<()> {
    const REGION_MIB: u64 = 64;
    const WANTED_PAGES: u64 = 48 << 8;
    let mut spec = Spec::new(&context.payload, 512);
    spec.boot_args = format!("cma={REGION_MIB}M");
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let [idle] = guest.agent.vmstat(["nr_free_cma"])?;
    check!(idle > REGION_MIB << 7, "only {idle} pages of CMA are free in an idle guest");
    // Programs take the rest of memory first; what zram and the balloon get then lies there too.
    guest.agent.command("fill anonymous 320M")?;
    guest.agent.command("zram-fill 0 110M")?;
    guest.balloon_to(40)?;
    let [lent] = guest.agent.vmstat(["nr_free_cma"])?;
    println!("free pages of CMA: {idle} idle, {lent} lent to zram, balloon and programs");
    check!(lent < idle / 2, "CMA is not lent out: {lent} of {idle} pages are free");
    guest.agent.command("free anonymous")?;

    let counters = ["balloon_block_release", "movable_migrate_balloon", "movable_migrate_zsmalloc"];
    let before = guest.agent.vmstat(counters)?;
    guest.agent.command(&format!("write {CMA}/alloc {WANTED_PAGES}"))?;
    let after = guest.agent.vmstat(counters)?;
    println!("{counters:?}: {before:?} before, {after:?} after the allocation");
    check!(after[0] + after[1] > before[0] + before[1], "nothing of the balloon was in the way");
    check!(after[2] > before[2], "nothing of zram was in the way");
    let used = guest.agent.command(&format!("read {CMA}/used"))?.join("");
    check_eq!(used, WANTED_PAGES.to_string());
    guest.agent.verify("zram-verify 0")?;
    guest.agent.command(&format!("write {CMA}/free {WANTED_PAGES}"))?;
    guest.balloon_to(0)?;
    guest.agent.verify("zram-verify 0")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
