// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor's own memory, outside the guest's, with a guest that waits for a key.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{GUEST_MIB, LIMIT, Monitor, Started};
use crate::error::{IoContext, Result, task_error};
use crate::tiny_guest;

/// The monitor frees what start-up used after the guest has started: memory is read until it stays
/// the same for this long.
const SETTLED: Duration = Duration::from_millis(300);

/// Memory of the monitor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OwnMemory {
    pub(super) anonymous_mib: f64,
    pub(super) resident_mib: f64,
}

/// Starts an idle guest and measures its monitor.
pub(super) fn measure(ballast: &Path) -> Result<OwnMemory> {
    let guest = tiny_guest::kernel(&tiny_guest::say_and_wait_for_a_key(b"!"));
    let Started { monitor, .. } = Monitor::start(ballast, &guest, &[])?;
    let pid = monitor.0.id();
    let started = Instant::now();
    let (mut last, mut since) = (memory_of(pid)?, Instant::now());
    while since.elapsed() < SETTLED {
        if started.elapsed() > LIMIT {
            return task_error("the memory of an idle monitor keeps changing");
        }
        thread::sleep(Duration::from_millis(20));
        let now = memory_of(pid)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// Memory of process `pid` outside the guest's.
fn memory_of(pid: u32) -> Result<OwnMemory> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).doing("reading", &path)?;
    let (mut size, mut anonymous, mut resident) = (0, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(kib)) = (words.next(), words.next()) else { continue };
        let kib: u64 = kib.parse().unwrap_or(0);
        match name {
            "Size:" => size = kib,
            // The guest's memory is one mapping: nothing has been ballooned.
            _ if size >= GUEST_MIB << 10 => {}
            "Rss:" => resident += kib,
            "Anonymous:" => anonymous += kib,
            _ => {}
        }
    }
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(OwnMemory { anonymous_mib: mib(anonymous), resident_mib: mib(resident) })
}
