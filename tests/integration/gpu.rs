// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GPU buffers of a guest that move while in use: nothing is lost, memory is not fragmented by
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::fragments::Fragments;
use harness::guest::Guest;
use harness::limits;
use harness::monitor::Spec;
use harness::places;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// GPU pages that the guest's kernel moved; and how often it failed, which it does several
/// times a page until the device has answered.
pub(crate) const COUNTERS: [&str; 2] = ["movable_migrate_gpu", "movable_fail_gpu"];

pub(crate) fn compact(guest: &mut Guest) -> Result<()> {
    guest.agent.command("write /proc/sys/vm/compact_memory 1").map(drop)
}

/// Where the pages of buffers or of a picture are, each by what it is filled with.
type Held = BTreeMap<(String, u64, usize), u64>;

/// Checks all pages of those sets of buffers, repaints them, and finds them.
fn find_buffers(guest: &mut Guest, sets: &[&str]) -> Result<Held> {
    let mut held = Held::new();
    for set in sets {
        find_painted(guest, &format!("gpu-repaint {set}"), set, &mut held)?;
    }
    Ok(held)
}

/// Has the guest paint something with a pattern that is nowhere else yet, which says where it is.
/// Should the kernel move a page of it just then, an older copy is found too: then try again.
fn find_painted(guest: &mut Guest, paint: &str, name: &str, held: &mut Held) -> Result<()> {
    for _ in 0..3 {
        let painted = guest.agent.figures(paint)?;
        check_eq!(painted["damaged"], 0);
        let seed = u8::try_from(painted["seed"]).unwrap_or_default();
        let found = places::find(guest.monitor.pid(), seed)?;
        check_eq!(found.len() as u64, painted["pages"]);
        if found.values().all(|at| at.len() == 1) {
            let named = found
                .into_iter()
                .map(|((seed, index), at)| ((name.to_owned(), seed >> 8, index), at[0]));
            held.extend(named);
            return Ok(());
        }
    }
    Err(Error::Check(format!("pages of {name} keep moving by themselves")))
}

/// Those pages of `of` which are elsewhere now.
fn moved(before: &Held, after: &Held, of: &mut BTreeSet<(String, u64, usize)>) {
    of.extend(
        before.iter().filter(|(page, at)| after[*page] != **at).map(|(page, _)| page.clone()),
    );
}

/// Waits until scanout `number` shows the picture with that checksum: the guest's flush may be on
/// its way still.
fn shows(guest: &mut Guest, number: u32, checksum: u64) -> Result<()> {
    for _ in 0..50 {
        if guest.picture(number)?.checksum() == checksum {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let picture = guest.picture(number)?;
    Err(Error::Check(format!(
        "scanout {number} does not show the guest's picture: {}x{}, {} pixels lit",
        picture.width,
        picture.height,
        picture.lit()
    )))
}

/// Dumb buffers and blobs keep their bytes, and a client that draws and flips all the time finds
/// its own as it left them, while every page of them is moved; so is every page of a picture, which
/// is unchanged in the guest and on the scanout.
pub(crate) fn buffers_move_while_in_use(context: &Context) -> Result<()> {
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 512) }.with_gpu(640, 480, 2);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let kinds = ["dumb", "blob"];
    for kind in kinds {
        let filled = guest.agent.figures(&format!("gpu-fill {kind} 64M {kind}"))?;
        check_eq!(filled["refused"], 0);
    }
    for kind in kinds {
        guest.agent.command(&format!("gpu-punch {kind}"))?;
    }
    let first = find_buffers(&mut guest, &kinds)?;

    guest.agent.command("screen-start 0")?;
    let before = guest.agent.vmstat(COUNTERS)?;
    for _ in 0..3 {
        compact(&mut guest)?;
    }
    let compacted = guest.agent.vmstat(COUNTERS)?;
    let drawn = guest.agent.figures("screen-count")?["frames"];
    guest.evacuate_everything()?;
    let evacuated = guest.agent.vmstat(COUNTERS)?;
    let client = guest.agent.figures("screen-stop")?;
    let second = find_buffers(&mut guest, &kinds)?;
    let mut elsewhere = BTreeSet::new();
    moved(&first, &second, &mut elsewhere);
    let by_kernel = elsewhere.len();

    println!(
        "{} pages in buffers; moved, failed: {before:?} at first, {compacted:?} after compaction, \
         {evacuated:?} after evacuation, by which {by_kernel} of them are elsewhere now; the \
         client: {client:?}",
        first.len(),
    );
    check!(compacted[0] > before[0], "compaction moved nothing");
    check!(client["frames"] > drawn, "the client stood still");
    check_eq!(client["damaged"], 0);
    check!(by_kernel >= first.len() / 4 * 3, "{by_kernel} of {} pages moved", first.len());

    a_picture_moves(&mut guest)?;

    // An export keeps a buffer where it is, and has no reason to move it first.
    let third = find_buffers(&mut guest, &kinds)?;
    moved(&second, &third, &mut elsewhere);
    guest.agent.command("screen-start 0")?;
    for kind in kinds {
        guest.agent.command(&format!("gpu-export {kind} 100000"))?;
        guest.agent.command(&format!("gpu-unexport {kind}"))?;
    }
    let client = guest.agent.figures("screen-stop")?;
    let last = find_buffers(&mut guest, &kinds)?;
    let mut by_export = BTreeSet::new();
    moved(&third, &last, &mut by_export);
    println!(
        "of {} pages in buffers, {} were moved by compaction and evacuation, {} by their export; the \
         client: {client:?}",
        first.len(),
        elsewhere.len(),
        by_export.len()
    );
    check_eq!(client["damaged"], 0);
    check!(
        by_export.len() < first.len() / 20,
        "{} pages were moved unnecessarily",
        by_export.len()
    );
    guest.agent.verify("gpu-verify dumb")?;
    guest.agent.verify("gpu-verify blob")?;

    let status = guest.monitor.api().get("/gpu")?;
    check!(status["counters"]["migrated_pages"].as_u64() >= Some(evacuated[0]), "{status}");
    check_eq!(status["counters"]["migrations_failed"], 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A picture is unchanged, in the guest and on its scanout, while each of its pages is moved.
fn a_picture_moves(guest: &mut Guest) -> Result<()> {
    let picture = guest.agent.figures("screen-hold 1 77")?;
    shows(guest, 1, picture["checksum"])?;
    let (first, checksum) = repaint_picture(guest, 78)?;
    let before = guest.agent.vmstat(COUNTERS)?;
    compact(guest)?;
    guest.evacuate_everything()?;
    let after = guest.agent.vmstat(COUNTERS)?;
    still_shows(guest, checksum)?;
    let (second, checksum) = repaint_picture(guest, 79)?;
    let mut elsewhere = BTreeSet::new();
    moved(&first, &second, &mut elsewhere);
    let by_kernel = elsewhere.len();

    guest.agent.command("screen-export")?;
    still_shows(guest, checksum)?;
    println!(
        "with a picture held: {before:?}, then {after:?}; of its {} pages, {by_kernel} were moved by \
         compaction and evacuation",
        first.len(),
    );
    check!(by_kernel > 0, "neither compaction nor evacuation moved a page of it");
    Ok(())
}

/// Another picture in the same memory: where its pages are, and its checksum.
fn repaint_picture(guest: &mut Guest, seed: u64) -> Result<(Held, u64)> {
    let mut held = Held::new();
    find_painted(guest, &format!("screen-repaint {seed}"), "picture", &mut held)?;
    let checksum = guest.agent.figures("screen-held")?["checksum"];
    shows(guest, 1, checksum)?;
    Ok((held, checksum))
}

/// Nothing was drawn since the picture had that checksum, and nothing has changed.
fn still_shows(guest: &mut Guest, checksum: u64) -> Result<()> {
    shows(guest, 1, checksum)?;
    guest.agent.verify("screen-held")
}

/// Exported buffers do not move even under heavy compaction: other parties hold their addresses.
pub(crate) fn exported_buffers_stay(context: &Context) -> Result<()> {
    let spec = Spec::new(&context.payload, 256).with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    // What is freed before them is where compaction wants to put them.
    guest.agent.command("file-fill pieces 100M")?;
    guest.agent.command("gpu-fill shared 12M blob")?;
    let exported = guest.agent.figures("gpu-export shared 100000")?["exported"];
    check_eq!(exported, 12 * MIB / PAGE);
    guest.agent.command("file-punch pieces 1")?;
    let counters = [COUNTERS[0], COUNTERS[1], "pgmigrate_success"];
    let before = guest.agent.vmstat(counters)?;
    for _ in 0..2 {
        compact(&mut guest)?;
    }
    let after = guest.agent.vmstat(counters)?;
    println!("exported: moved, failed, moved of all owners: {before:?}, then {after:?}");
    check!(after[2] > before[2], "compaction had nothing to do: {before:?}, {after:?}");
    check_eq!(after[..2], before[..2]);
    guest.agent.verify("gpu-verify shared")?;

    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Share of memory that is filled with buffers, in percent, before every other one is freed.
const FRAGMENTING: u64 = 60;
/// How much of free memory can be allocated in one piece after a compaction, in percent: as free blocks, and
/// as kernel memory of any order.
const WHOLE: f64 = 95.0;
/// The same on the debug kernel: its own objects, larger and freed late, lie about in more blocks.
const WHOLE_AT_DEBUG: f64 = 85.0;
/// What a kernel that cannot move the buffers stays below, in percent.
const FRAGMENTED: f64 = 60.0;

/// Buffers fill 60 % of memory, and every other one is freed: after one compaction free memory is
/// contiguous, and the kernel can allocate it in any order.
pub(crate) fn freed_buffers_leave_whole_blocks(context: &Context) -> Result<()> {
    let spec = Spec::new(&context.payload, 768).with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let fragments = Fragments::measure(&mut guest, FRAGMENTING)?;
    println!("our kernel: {fragments}");
    let whole = if limits::debug_kernel() { WHOLE_AT_DEBUG } else { WHOLE };
    check!(fragments.blocks_percent() >= whole, "{:.1} %", fragments.blocks_percent());
    check!(fragments.failed_percent() <= 1.0, "{:.1} % failed", fragments.failed_percent());
    check!(fragments.gpu[0] > fragments.held_pages / 10, "hardly a GPU page moved");
    check!(fragments.pages_a_command() >= 16.0, "{:.1} pages", fragments.pages_a_command());
    for obtained in &fragments.obtained {
        check!(obtained.percent() >= whole, "{obtained:?}");
    }
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The result of the test above depends on the patches: with the same device, a kernel without them
/// stays far below it.
pub(crate) fn without_patches_memory_is_fragmented(context: &Context) -> Result<()> {
    let spec = Spec::debian_display(&context.payload, 768).with_gpu(640, 480, 1);
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let fragments = Fragments::measure(&mut guest, FRAGMENTING)?;
    println!("Debian's kernel: {fragments}");
    check!(fragments.held_pages > 0 && fragments.gpu == [0, 0], "{fragments:?}");
    check!(fragments.moved < fragments.held_pages / 10, "{} pages moved", fragments.moved);
    check!(fragments.blocks_percent() < FRAGMENTED, "what is free is whole");
    let largest = fragments.obtained.last();
    check!(largest.is_some_and(|largest| largest.percent() < FRAGMENTED), "{largest:?}");
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
