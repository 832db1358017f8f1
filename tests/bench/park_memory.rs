// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the memory of a parked guest is: guest memory that stayed or came back, the pool, and the
//! rest of the monitor and of the host.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use harness::host::{self, PAGE};
use harness::monitor::Monitor;
use harness::{Error, Result};
use serde_json::Value;

use crate::mib;

/// Guest memory may be in many mappings, of a block at least.
const MAPPING: u64 = 2 << 20;
/// Pages in a block.
const BLOCK_PAGES: u64 = 512;
/// Lines of /proc/meminfo that differ by less are left out.
const NOTABLE: u64 = 512 << 10;

/// Parts of what a parked guest costs, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    /// Resident guest memory.
    pub(crate) guest: u64,
    /// Compressed pages, in frames.
    pub(crate) pool: u64,
    /// Anonymous memory of the monitor beside these.
    pub(crate) own: u64,
}

/// Measures and prints the parts; `before` is /proc/meminfo before the guest was started.
pub(crate) fn show(monitor: &Monitor, before: &HashMap<String, u64>) -> Result<Parts> {
    let after = host::meminfo()?;
    let map = monitor.api().get("/memory/blocks")?;
    println!("  guest memory: {}", describe_blocks(&map));
    let number = |path: &str, field: &str| -> Result<u64> {
        let answer = monitor.api().get(path)?;
        answer[field].as_u64().ok_or_else(|| Error::Check(format!("{path}: {answer}")))
    };
    let guest = number("/memory", "resident_bytes")?;
    let pool = number("/memory/pool", "used_bytes")?;
    let (large, small) = host::mappings(monitor.pid(), MAPPING)?;
    let own = (large.anonymous + small.anonymous).saturating_sub(guest + pool);
    println!(
        "  resident: {:.1} MiB guest memory, {:.1} pool, {:.1} the monitor's own; \
         large mappings {:.1} MiB, of these huge {:.1}, small ones {:.1}",
        mib(guest),
        mib(pool),
        mib(own),
        mib(large.anonymous),
        mib(large.huge),
        mib(small.anonymous)
    );
    let (pages, zero) = zero_pages(monitor.pid())?;
    println!(
        "  of {:.1} MiB in large mappings {:.1} are zero",
        mib(pages * PAGE),
        mib(zero * PAGE)
    );
    println!("  the host since its start, in MiB: {}", differences(before, &after));
    Ok(Parts { guest, pool, own })
}

/// How many blocks have how much of their memory.
fn describe_blocks(map: &Value) -> String {
    let names = ["huge", "full, small pages", "over half", "over 16 pages", "fewer", "empty"];
    let (mut blocks, mut pages) = ([0; 6], [0; 6]);
    let runs = map["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
    for run in runs {
        let present = run["present"].as_u64().unwrap_or(0);
        let class = match present {
            BLOCK_PAGES if run["huge"] == true => 0,
            BLOCK_PAGES => 1,
            256.. => 2,
            17.. => 3,
            1.. => 4,
            _ => 5,
        };
        let count = run["blocks"].as_u64().unwrap_or(0);
        blocks[class] += count;
        pages[class] += count * present;
    }
    let parts = names.iter().zip(blocks).zip(pages).filter(|((_, blocks), _)| *blocks > 0);
    let parts = parts.map(|((name, blocks), pages)| {
        format!("{blocks} blocks {name} ({:.1} MiB)", mib(pages * PAGE))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// What has changed in /proc/meminfo.
fn differences(before: &HashMap<String, u64>, after: &HashMap<String, u64>) -> String {
    let mut lines: Vec<_> = after
        .iter()
        .filter_map(|(name, now)| {
            let then = before.get(name)?;
            (now.abs_diff(*then) >= NOTABLE)
                .then(|| format!("{name} {:+.1}", mib(*now) - mib(*then)))
        })
        .collect();
    lines.sort();
    lines.join(", ")
}

/// Pages of process `pid` that are resident in large anonymous mappings, and those of them that have
/// only zeroes.
fn zero_pages(pid: u32) -> Result<(u64, u64)> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        File::open(&path).map_err(Error::io(format!("opening {path}")))
    };
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    let (pagemap, memory) = (read("pagemap")?, read("mem")?);
    let (mut resident, mut zero) = (0, 0);
    let mut entries = vec![0; 8 * BLOCK_PAGES as usize];
    let mut page = vec![0; PAGE as usize];
    for (start, end) in maps.lines().filter_map(anonymous) {
        let mut at = start;
        while at < end {
            let pages = (end - at).div_ceil(PAGE).min(BLOCK_PAGES);
            let entries = &mut entries[..8 * pages as usize];
            pagemap
                .read_exact_at(entries, at / PAGE * 8)
                .map_err(Error::io("reading a page map"))?;
            for (entry, address) in
                entries.as_chunks::<8>().0.iter().zip((at..).step_by(PAGE as usize))
            {
                // Bit 63: present.
                if u64::from_le_bytes(*entry) >> 63 == 0
                    || memory.read_exact_at(&mut page, address).is_err()
                {
                    continue;
                }
                resident += 1;
                zero += u64::from(page.iter().all(|byte| *byte == 0));
            }
            at += pages * PAGE;
        }
    }
    Ok((resident, zero))
}

/// Start and end of a large anonymous mapping.
fn anonymous(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (rights, inode) = (words.next()?, words.nth(2)?);
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (rights.starts_with("rw") && inode == "0" && end - start >= MAPPING).then_some((start, end))
}
