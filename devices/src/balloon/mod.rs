// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory balloon (virtio 1.3, 5.5), and Ballast's two extensions of it: whole blocks, and
//! evacuation on request (`docs/virtio-extensions.md`).
//!
//! The host sets a target; the guest's driver gives pages up until the balloon holds that many, or
//! takes pages back. What the guest says of its own memory is taken at its word, as it can harm
//! nobody but itself: contents of pages that it gives up are gone. What it says of *numbers* is not:
//! the device keeps its own [`ledger`](Ledger) and checks every page against guest RAM.
//!
//! May use: `virtio`, `mm`; it reaches the host's memory only through [`MemoryReclaim`].
//!
//! Threads: vCPUs read and write configuration and run the queues of pages and hints; the event
//! loop runs the other queues, the timer, and all host-side methods of [`Balloon`].
//!
//! - `protocol.rs`: the wire
//! - `roles.rs`: which queue is which
//! - `device.rs`: the device, one dispatch over its queues
//! - `inflation.rs`: pages and blocks in and out
//! - `free_pages.rs`: reports and hints
//! - `reverse.rs`: statistics and requests to vacate blocks, which run backwards
//! - `host.rs`: what the host asks of it: targets, statistics, hinting, evacuation
//! - `pages.rs`: page numbers made into runs
//! - `ledger.rs`: which pages are in the balloon
//! - `pool.rs`: when they are given back
//! - `reclaim.rs`: to whom
//! - `stats.rs`, `hinting.rs`, `evacuate.rs`: their state
//! - `counters.rs`: what has happened
//! - `timer.rs`: what is done later

mod counters;
mod device;
mod evacuate;
mod free_pages;
mod hinting;
mod host;
mod inflation;
mod ledger;
mod pages;
mod pool;
pub mod protocol;
mod reclaim;
mod reverse;
mod roles;
mod stats;
#[cfg(test)]
mod tests;
mod timer;

use std::time::Duration;

use mm::units::Pages;

pub use counters::{Counters, GivenBack};
pub use device::Balloon;
pub use evacuate::{EvacuationDone, EvacuationReport, Migrated, Outcome};
pub use hinting::HintingStatus;
pub use ledger::{Fill, Ledger};
pub use pages::merge;
pub use reclaim::{Discarded, MemoryReclaim};
pub use stats::Statistics;
pub use timer::TimerRunner;

/// What a balloon is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Pages that the guest is to give up from the start.
    pub target: Pages,
    /// Whether the guest takes pages back rather than kill a process.
    pub deflate_on_oom: bool,
    /// How often statistics are asked for; zero for no statistics at all.
    pub stats_interval: Duration,
    /// Whether free pages can be asked for at a moment of the host's choosing.
    pub free_page_hinting: bool,
    /// Whether the guest reports pages as they become free.
    pub free_page_reporting: bool,
    /// Whether whole blocks may be given up as such.
    pub blocks: bool,
    /// Whether the guest can be asked to vacate blocks; needs `blocks`.
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
    #[error("the balloon was configured without {0}")]
    NotConfigured(&'static str),
    /// The guest's driver has not accepted the feature, or there is none.
    #[error("the guest's balloon driver does not support {0}, or is not running")]
    NotAccepted(&'static str),
    /// Statistics cannot be turned on or off once the balloon is made.
    #[error("statistics polling cannot be turned on or off after the balloon was configured")]
    StatsOnOff,
    /// The host refused a resource.
    #[error("cannot make the balloon: {0}")]
    Host(#[from] std::io::Error),
}
