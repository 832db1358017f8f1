// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much memory the host can give to this process: what bounds the return of parked memory.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mm::paging::{HostRoom, RoomSource};
use mm::units::Bytes;

use crate::host::control_group::{ControlGroups, GroupLimits};
use crate::host::memory_figures::HostFigures;

/// How often limits and page cache are read, which takes longer than usage.
const SELDOM: Duration = Duration::from_secs(1);
/// Share of the host's memory that should stay available, and the most that this is.
const HOST_RESERVE_SHARE: u64 = 32;
const HOST_RESERVE_MOST: u64 = 256 << 20;

/// The host's memory, or that of the tightest control group of this process.
pub(super) struct RoomGauge {
    groups: ControlGroups,
    seen: Mutex<Option<(Instant, Vec<GroupLimits>, HostRoom)>>,
}

impl RoomGauge {
    /// Of the groups that this process is in now.
    pub(super) fn find() -> Self {
        Self { groups: ControlGroups::find(), seen: Mutex::new(None) }
    }
}

impl RoomSource for RoomGauge {
    fn room(&self) -> HostRoom {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || of_host(&HostFigures::read_memory());
        let now = match seen.take() {
            // Without a group's limit, the host itself is what can run out at any moment.
            Some((at, groups, _)) if at.elapsed() < SELDOM && groups.is_empty() => {
                (at, groups, read())
            }
            Some(now) if now.0.elapsed() < SELDOM => now,
            _ => (Instant::now(), self.groups.limits(), read()),
        };
        let (_, groups, host) = &*seen.insert(now);
        groups.iter().filter_map(GroupLimits::room).fold(*host, |least, [high, max]| HostRoom {
            before_short: least.before_short.min(Bytes(high)),
            before_full: least.before_full.min(Bytes(max)),
        })
    }
}

fn of_host(host: &HostFigures) -> HostRoom {
    let Some((total, available)) = host.total.zip(host.available) else {
        return HostRoom::UNLIMITED;
    };
    let reserve = (total / HOST_RESERVE_SHARE).min(HOST_RESERVE_MOST);
    HostRoom {
        before_short: Bytes(available.saturating_sub(reserve)),
        before_full: Bytes(available),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_a_reserve() {
        let host = HostFigures {
            total: Some(3200 << 20),
            available: Some(150 << 20),
            ..HostFigures::default()
        };
        let room = of_host(&host);
        assert_eq!((room.before_short, room.before_full), (Bytes(50 << 20), Bytes(150 << 20)));
        assert_eq!(of_host(&HostFigures::default()), HostRoom::UNLIMITED);
        assert!(RoomGauge::find().room().before_full > Bytes(0));
    }
}
