// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `memory.host_threads`: threads beside the vCPUs that devices, viewers and requests may make the
//! monitor have. Those that every machine has once (main, API, signals, log, console, pager, …) are
//! not counted.

use devices::display::vnc::{MAX_CLIENTS, THREADS_PER_CLIENT};
use mm::units::SaturatingInto;

use super::drives::{DriveConfig, IoEngine};
use super::memory::MemoryConfig;
use super::rules::{Check, Faults};

/// Most threads of the host's that work for one disk's io_uring: as many as it is of use to wait
/// for the disk in at once.
const MOST_WORKERS: u64 = 8;

/// What devices get of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadShares {
    /// Threads of the host's (io_uring's) for each disk that has the engine `Async`.
    pub disk_workers: u16,
}

/// Devices that have threads.
pub(super) struct Threaded<'a> {
    pub(super) drives: &'a [DriveConfig],
    /// Other devices that are not on the main thread.
    pub(super) others: usize,
    /// The display can be watched.
    pub(super) watched: bool,
}

impl Threaded<'_> {
    fn disks_with_workers(&self) -> u64 {
        self.drives.iter().filter(|drive| drive.io_engine == IoEngine::Async).count() as u64
    }

    /// Threads that the devices need: one for each, one for each disk's io_uring, and two for one
    /// viewer.
    fn least(&self) -> u64 {
        let devices = (self.drives.len() + self.others) as u64;
        let viewer = if self.watched { 1 + THREADS_PER_CLIENT } else { 0 };
        devices + self.disks_with_workers() + viewer
    }

    /// What devices get of `threads`: what is left beside the least and the other viewers' goes to
    /// disks in equal parts.
    pub(super) fn shares(&self, threads: u16) -> ThreadShares {
        let viewers = if self.watched { (MAX_CLIENTS - 1) * THREADS_PER_CLIENT } else { 0 };
        let spare = u64::from(threads).saturating_sub(self.least()).saturating_sub(viewers);
        let more = spare.checked_div(self.disks_with_workers()).unwrap_or(0);
        let disk_workers = 1 + more.min(MOST_WORKERS - 1);
        ThreadShares { disk_workers: disk_workers.saturating_u16() }
    }
}

/// The rule of this field, for a machine with these devices.
pub(super) fn rules(check: &Check<'_, MemoryConfig>, devices: &Threaded<'_>, faults: &mut Faults) {
    let (given, least) = (check.section.host_threads, devices.least().max(1));
    if u64::from(given) < least {
        let problem = format!("{given}: the devices of this machine need {least} or more");
        faults.add("memory.host_threads", problem);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::VmConfig;

    fn config(disks: usize, host_threads: u16) -> VmConfig {
        let drive = |number: usize| json!({"drive_id": format!("d{number}"), "is_root_device": false, "path_on_host": "/d"});
        serde_json::from_value(json!({
            "drives": (0..disks).map(drive).collect::<Vec<_>>(),
            "gpu": {"width_px": 64, "height_px": 64, "vnc_socket": "/v"},
            "entropy": {},
            "memory": {"host_threads": host_threads},
        }))
        .unwrap()
    }

    #[test]
    fn shares_never_exceed_the_budget() {
        for disks in 1..17 {
            for threads in 1..100 {
                let config = config(disks, threads);
                let workers = config.thread_shares().disk_workers;
                assert!((1..=8).contains(&workers));
                let least = config.threaded().least();
                if least <= threads.into() {
                    let extra = disks as u64 * (u64::from(workers) - 1);
                    assert!(least + extra <= threads.into(), "{disks}, {threads}");
                }
            }
        }
        assert_eq!(config(2, 64).thread_shares().disk_workers, 8);
    }

    #[test]
    fn the_kernels_threads_for_an_interface_are_counted() {
        let least = |vhost| {
            let interface = json!({
                "iface_id": "eth0", "host_dev_name": "tap0", "queues": 4, "vhost": vhost,
            });
            let config = json!({ "network-interfaces": [interface] });
            let config: VmConfig = serde_json::from_value(config).unwrap();
            config.threaded().least()
        };
        assert_eq!((least("Off"), least("Auto"), least("On")), (1, 1, 5));
    }
}
