// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory balloon (virtio 1.3, 5.5), and Ballast's two extensions of it: whole blocks, and
//! evacuation on request (`docs/virtio-extensions.md`).
//!
//! The host sets a target; the guest's driver gives pages up until the balloon holds that many, or
//! takes pages back. The device trusts the guest about the contents of its memory, as the guest can
//! harm only itself: contents of pages that it gives up are lost. It does not trust *numbers*: it
//! keeps its own [`ledger`](Ledger) and checks every page against guest RAM.
//!
//! May use: `virtio`, `mm`; it reaches the host's memory only through [`MemoryReclaim`].
//!
//! Threads: vCPUs read and write configuration and run the queues of pages and hints; the event
//! loop runs the other queues and the timer; the host-side methods of [`Balloon`] are called by it
//! and by the thread that compacts. No call holds the balloon's lock for longer than one
//! [`Deadline`](crate::virtio::Deadline).
//!
//! - `protocol.rs`: the wire format; `roles.rs`: which queue is which
//! - `device/`: the device as its driver and as the host see it, one dispatch over its queues
//! - `balloon_core.rs`: state shared by all queues; `event_journal.rs`, `counters.rs`: the log and the counters
//! - `target.rs`: the size that the driver should reach
//! - `inflation.rs`: the queues of pages in and out; `pages.rs`: page numbers made into runs
//! - `block_queue.rs`: the queue of blocks; `migrations.rs`: which of both are halves of a migration
//! - `free_pages.rs`: the queues of reports and of hints; `hinting.rs`: which hints count
//! - `polling.rs`: the statistics queue; `stats.rs`: the figures
//! - `evacuation.rs`: the evacuation queue; `requests/`: requests and replies
//! - `serving.rs`, `work.rs`: the work for a buffer, interrupted by deadlines
//! - `pool/`: when pages are given back, and how; `page_runs.rs`: lists of them; `ledger/`: which are in the balloon;
//!   `page_sizes.rs`: where huge pages are forbidden; `memory_reclaim.rs`: the memory behind it
//! - `timer_runner.rs`: delayed work; `changes.rs`: how other threads are notified

mod balloon_core;
mod block_queue;
mod changes;
mod counters;
mod device;
mod evacuation;
mod event_journal;
mod free_pages;
mod hinting;
mod inflation;
mod ledger;
mod memory_reclaim;
mod migrations;
mod page_runs;
mod page_sizes;
mod pages;
mod polling;
mod pool;
pub mod protocol;
mod requests;
mod roles;
mod serving;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod timer_runner;
mod work;

use std::time::Duration;

use mm::units::Pages;

pub use changes::Changes;
pub use counters::{BalloonCounters, GivenBack};
pub use device::Balloon;
pub use hinting::HintingStatus;
pub use ledger::{BlockFill, Ledger};
pub use memory_reclaim::{Discarded, MemoryReclaim};
pub use pages::merge;
pub use requests::{BlockResult, EvacuationDone, EvacuationReport, Migrated};
pub use stats::Statistics;
pub use timer_runner::TimerRunner;

/// Configuration of a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Initial target, in pages.
    pub target: Pages,
    /// Whether the guest deflates the balloon instead of letting the OOM killer act.
    pub deflate_on_oom: bool,
    /// Polling interval for statistics; zero disables them.
    pub stats_interval: Duration,
    /// Whether free pages can be asked for at a moment of the host's choosing.
    pub free_page_hinting: bool,
    /// Whether the guest reports pages as they become free.
    pub free_page_reporting: bool,
    /// Whether the guest may give up whole blocks.
    pub blocks: bool,
    /// Whether the guest can be asked to evacuate blocks; needs `blocks`.
    pub evacuation: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            target: Pages(0),
            deflate_on_oom: true,
            stats_interval: Duration::ZERO,
            free_page_hinting: false,
            free_page_reporting: false,
            blocks: true,
            evacuation: true,
        }
    }
}

/// Why the balloon does not do as the host asks.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// More pages than the guest has, or than the device can express.
    #[error("a balloon of {target} is larger than the guest's memory of {ram}")]
    TargetTooLarge {
        /// What was asked for.
        target: Pages,
        /// All RAM.
        ram: Pages,
    },
    /// The balloon was made without the feature.
    #[error("the balloon is configured without {0}")]
    NotConfigured(&'static str),
    /// The guest's driver has not accepted the feature, or there is no driver.
    #[error("the guest's balloon driver does not support {0}, or is not running")]
    NotAccepted(&'static str),
    /// Statistics cannot be turned on or off once the balloon is made.
    #[error("statistics polling cannot be turned on or off after the balloon was configured")]
    StatsOnOff,
    /// The host refused a resource.
    #[error("cannot create the balloon: {0}")]
    Host(#[from] std::io::Error),
}
