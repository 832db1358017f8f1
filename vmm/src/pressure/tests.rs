// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The policy at work on memory without a guest: everything is cold.

use std::time::{Duration, Instant};

use mm::backing::BackingKind;
use mm::budget::Budget;
use mm::guest_ram::GuestRam;
use mm::layout::MemoryLayout;
use mm::units::Bytes;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::compactor::{Compactor, LiveGuest};
use crate::config::{PagingConfig, PolicyConfig, PolicyPreset};
use crate::event_loop::EventLoop;
use crate::parking::Parking;

/// Timeout for any step on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    ram: Arc<GuestRam>,
    // In the order in which they must go.
    policy: MemoryPolicy,
    compactor: Compactor,
    parking: Parking,
    _events: EventLoop,
}

fn limits(preset: PolicyPreset) -> Limits {
    let config = PolicyConfig {
        preset,
        floor_mib: Some(8),
        interval_ms: 100,
        cpu_percent: Some(100),
        ..PolicyConfig::default()
    };
    let limits = Limits::new(&config, Bytes(32 << 20));
    // Every host counts as short here: trials are as short as possible.
    Limits { host_reserve: Some(Bytes(u64::MAX / 1000)), ..limits }
}

impl Fixture {
    fn new(preset: PolicyPreset) -> Self {
        let layout = MemoryLayout::new(Bytes(32 << 20), Bytes(0)).unwrap();
        let ram = Arc::new(GuestRam::new(layout, BackingKind::Thp).unwrap());
        for page in 0..8192u64 {
            ram.memory().write_obj(page + 1, GuestAddress(page << 12)).unwrap();
        }
        let events = EventLoop::new().unwrap();
        let config = PagingConfig { threads: Some(1), ..PagingConfig::default() };
        let (threads, exit) = (Budget::count("threads", 8), events.handle().exit().clone());
        let parking = Parking::start(&ram, &config, 1 << 15, &threads, &exit);
        let parking = parking.expect("run as root");
        let guest = LiveGuest::new(Arc::clone(&ram), None, None);
        let compactor = Compactor::start(guest.clone(), None).unwrap();
        let paging = Ok(Arc::clone(parking.paging()));
        let machine =
            PolicyMachine { guest, target: Pages(0), paging, work: compactor.background() };
        let policy = MemoryPolicy::start(machine, limits(preset)).unwrap();
        Self { ram, policy, compactor, parking, _events: events }
    }

    fn is_intact(&self) -> bool {
        let read = |page: u64| self.ram.memory().read_obj::<u64>(GuestAddress(page << 12)).unwrap();
        (0..8192).all(|page| read(page) == page + 1)
    }

    fn until(&self, what: &str, reached: impl Fn(&PolicyStatus) -> bool) -> PolicyStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.policy.status();
            if reached(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn cold_memory_goes_down_to_the_floor_and_every_step_has_a_reason() {
    let f = Fixture::new(PolicyPreset::Gentle);
    if f.ram.residency().unwrap().huge != Some(Bytes(32 << 20)) {
        eprintln!("not run: this host gives no huge pages now");
        return;
    }
    let status = f.until("eviction", |status| {
        status.evictions.stored > 0 && status.memory.resident <= Bytes(8 << 20)
    });
    assert_eq!(status.level, HostLevel::Short);
    assert!(status.memory.resident >= status.limits.unwrap().floor, "{status:?}");
    let last = status.journal.entries().next_back().unwrap();
    assert!(last.decision.reason.contains("the host is short"), "{last:?}");
    assert!(f.is_intact());
    // When switched off, no block stays on trial.
    f.policy.set_limits(limits(PolicyPreset::Off));
    f.until("rest", |status| status.limits.is_some_and(|now| now.preset == PolicyPreset::Off));
    let end = Instant::now() + PATIENCE;
    while f.parking.stats().staged_bytes > 0 {
        assert!(Instant::now() < end, "{:?}", f.parking.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(f.is_intact());
}

#[test]
fn a_policy_without_balloon_and_statistics_says_so_and_goes_on() {
    let f = Fixture::new(PolicyPreset::Dense);
    let status = f.until("two rounds", |status| status.counters.rounds >= 2);
    assert_eq!((status.guest, status.target), (GuestState::Unknown, None));
    assert!(f.compactor.last_report().is_none());
}
