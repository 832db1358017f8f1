// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fragmentation of a guest's memory by GPU buffers: many of them, every other one freed, and the
//! contiguous memory that can then be allocated. The same for tests and benches, for our kernel and
//! for others.

use std::fmt;
use std::time::Duration;

use crate::guest::Guest;
use crate::host::{PAGE, parse_buddyinfo};
use crate::{Result, limits};

/// Orders of which kernel memory is asked for.
pub const ORDERS: [u64; 3] = [2, 3, 9];
/// The same on the debug kernel, whose own small objects come in slabs of the other orders: where
/// those have run out, it kills a process instead of failing the allocation.
const DEBUG_ORDERS: [u64; 1] = [9];
/// Pages of a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// Thousands of buffers take a while, each with a round trip to the device.
const FILL_LIMIT: Duration = Duration::from_secs(300);
/// What free memory may still grow by when buffers are taken to be freed.
const SETTLED_PAGES: u64 = 64;
/// Reserves of the kernel are reduced: with huge pages it would keep tens of MiB free, the lowest
/// zone for old devices, and thousands of pages in per-CPU lists, where pages freed by compaction
/// rest.
const KEPT_FREE: [(&str, &str); 3] = [
    ("/proc/sys/vm/min_free_kbytes", "1024"),
    ("/proc/sys/vm/lowmem_reserve_ratio", "0 0 0"),
    ("/proc/sys/vm/percpu_pagelist_high_fraction", "100000"),
];

/// A guest's memory with the buffers in it.
#[derive(Debug, Clone)]
pub struct Fragments {
    /// Pages in buffers that are left.
    pub held_pages: u64,
    /// Free pages after compaction.
    pub free_pages: u64,
    /// Free blocks before compaction.
    pub blocks_before: u64,
    /// Free blocks after it.
    pub blocks: u64,
    /// Pages of all owners that compaction moved.
    pub moved: u64,
    /// Attempts of it that failed.
    pub failed: u64,
    /// GPU pages that it moved and could not move, where the kernel counts them.
    pub gpu: [u64; 2],
    /// Commands with which the guest's driver had the device move them, where it counts them.
    pub commands: Option<u64>,
    /// How long the compaction took, in ns of the guest.
    pub took_ns: u64,
    /// Bytes of kernel memory obtained in pieces of each order, and what was free. In the order of
    /// [`ORDERS`], as far as they can be measured.
    pub obtained: Vec<Obtained>,
}

/// Kernel memory obtained in pieces of one order.
#[derive(Debug, Clone, Copy)]
pub struct Obtained {
    /// Which.
    pub order: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Bytes that were free.
    pub free: u64,
}

impl Obtained {
    /// As a share of what was free, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        percent(self.bytes, self.free)
    }
}

impl Fragments {
    /// Fills `share_percent` of the guest's memory with buffers, frees every other one, has the
    /// kernel compact once, and measures. The buffers that are left are checked at the end.
    pub fn measure(guest: &mut Guest, share_percent: u64) -> Result<Self> {
        keep_little_free(guest)?;
        let agent = &mut guest.agent;
        let total = guest.spec.memory_mib;
        let fill = format!("gpu-fill f {}M dumb", total * share_percent / 100);
        let filled = agent.figures_within(&fill, FILL_LIMIT)?;
        crate::check!(filled.get("refused") == Some(&0), "{filled:?}");
        let freed = agent.figures("gpu-punch f")?["freed"];
        settle(guest)?;

        let counters =
            ["pgmigrate_success", "pgmigrate_fail", "movable_migrate_gpu", "movable_fail_gpu"];
        let (_, blocks_before) = free(guest)?;
        let before = guest.agent.vmstat(counters)?;
        let commands_before = migrate_commands(guest);
        let took_ns = guest.agent.figures("write /proc/sys/vm/compact_memory 1")?["ns"];
        let commands =
            migrate_commands(guest).zip(commands_before).map(|(after, before)| after - before);
        let after = guest.agent.vmstat(counters)?;
        let (free_pages, blocks) = free(guest)?;
        let [moved, failed, gpu_moved, gpu_failed] =
            std::array::from_fn(|n| after[n].saturating_sub(before[n]));

        let orders: &[u64] = if limits::debug_kernel() { &DEBUG_ORDERS } else { &ORDERS };
        let mut obtained = Vec::new();
        // The largest first, as compaction left it: taking everything in small pieces as
        // kernel memory leaves a few of its own pages in blocks that were free.
        for &order in orders.iter().rev() {
            let free = free(guest)?.0 * PAGE;
            let bytes = guest.agent.figures(&format!("order-fill {order}"))?["bytes"];
            guest.agent.command("order-free")?;
            obtained.insert(0, Obtained { order, bytes, free });
        }
        guest.agent.verify("gpu-verify f")?;
        guest.agent.command("gpu-free f")?;
        Ok(Self {
            held_pages: filled["pages"].saturating_sub(freed),
            free_pages,
            blocks_before,
            blocks,
            moved,
            failed,
            gpu: [gpu_moved, gpu_failed],
            commands,
            took_ns,
            obtained,
        })
    }

    /// Free blocks as a share of what free memory would make, in percent.
    #[must_use]
    pub fn blocks_percent(&self) -> f64 {
        percent(self.blocks, self.free_pages / BLOCK_PAGES)
    }

    /// Pages that one command moved, on average.
    #[must_use]
    pub fn pages_a_command(&self) -> f64 {
        self.gpu[0] as f64 / self.commands.unwrap_or(0).max(1) as f64
    }

    /// Pages of all owners that were moved for each block gained.
    #[must_use]
    pub fn pages_a_block(&self) -> f64 {
        self.moved as f64 / self.blocks.saturating_sub(self.blocks_before).max(1) as f64
    }

    /// Attempts to move a page that failed, in percent of all attempts.
    #[must_use]
    pub fn failed_percent(&self) -> f64 {
        percent(self.failed, self.moved + self.failed)
    }
}

impl fmt::Display for Fragments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let obtained: Vec<String> = self
            .obtained
            .iter()
            .map(|got| format!("{:.1} % in pieces of order {}", got.percent(), got.order))
            .collect();
        write!(
            f,
            "{} pages in buffers, {} free; free blocks {} before and {} after compaction, of {}; \
             {} pages moved in {:.2} s, {:.0} a block, {} failed (GPU: {} and {}, {:.1} a command); \
             allocatable share of free memory {}",
            self.held_pages,
            self.free_pages,
            self.blocks_before,
            self.blocks,
            self.free_pages / BLOCK_PAGES,
            self.moved,
            self.took_ns as f64 / 1e9,
            self.pages_a_block(),
            self.failed,
            self.gpu[0],
            self.gpu[1],
            self.pages_a_command(),
            obtained.join(", ")
        )
    }
}

/// Has the guest's kernel keep little for itself: see `KEPT_FREE`.
///
/// # Errors
/// The guest does not take it.
pub fn keep_little_free(guest: &mut Guest) -> Result<()> {
    for (knob, value) in KEPT_FREE {
        guest.agent.command(&format!("write {knob} {value}"))?;
    }
    Ok(())
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// Commands that the GPU's driver has sent to have pages moved; `None` of a kernel that sends none.
fn migrate_commands(guest: &mut Guest) -> Option<u64> {
    const STATISTICS: &str = "/sys/kernel/debug/dri/0/virtio-gpu-migrate";
    let text = guest.agent.command(&format!("read {STATISTICS}")).ok()?.join("\n");
    text.lines().find_map(|line| line.strip_prefix("commands ")?.trim().parse().ok())
}

/// Waits until free memory stops growing: a buffer is freed only when the device has answered that
/// it has forgotten it.
fn settle(guest: &mut Guest) -> Result<()> {
    let mut last = 0;
    loop {
        let (pages, _) = free(guest)?;
        if pages <= last + SETTLED_PAGES {
            return Ok(());
        }
        last = pages;
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Free pages, and free blocks of 2 MiB among them.
fn free(guest: &mut Guest) -> Result<(u64, u64)> {
    let orders = parse_buddyinfo(&guest.agent.command("read /proc/buddyinfo")?.join("\n"));
    let in_order = |(order, count): (usize, &u64)| count << order;
    let pages = orders.iter().enumerate().map(in_order).sum();
    let in_blocks: u64 = orders.iter().enumerate().skip(9).map(in_order).sum();
    Ok((pages, in_blocks / BLOCK_PAGES))
}
