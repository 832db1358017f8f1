// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a policy does with a guest and a host that answer it; `laws.rs` has what holds for any figures.

mod laws;

use std::time::Duration;

use mm::paging::EvictionCosts;

use super::*;
use crate::config::PolicyConfig;
use crate::host::memory_figures::HostFigures;
use crate::pressure::snapshot::{GuestFigures, MemoryUse, PagingUse};

const MIB: u64 = 1 << 20;
const GUEST: Bytes = Bytes(256 * MIB);

fn limits(preset: PolicyPreset, floor_mib: u64) -> Limits {
    let config = PolicyConfig {
        preset,
        floor_mib: Some(floor_mib),
        host_reserve_mib: Some(200),
        ..PolicyConfig::default()
    };
    Limits::new(&config, GUEST)
}

fn pager(absent: Bytes) -> PagingUse {
    PagingUse {
        absent,
        touched_blocks: 0,
        spent: Duration::ZERO,
        costs: EvictionCosts::default(),
        pool: [Bytes(0), Bytes(128 * MIB)],
        busy: false,
        repackable: 0,
    }
}

/// A moment at which the guest is easy and the host has `available`.
fn moment(round: u64, available_mib: u64) -> PressureSnapshot {
    let now = Duration::from_secs(round + 1);
    PressureSnapshot {
        now,
        host: HostFigures {
            total: Some(8192 * MIB),
            available: Some(available_mib * MIB),
            ..HostFigures::default()
        },
        memory: MemoryUse { total: GUEST, resident: Bytes(250 * MIB) },
        guest: Some(GuestFigures {
            at: now,
            free: Bytes(100 * MIB),
            available: Bytes(150 * MIB),
            ..GuestFigures::default()
        }),
        balloon: Some(BalloonUse::default()),
        paging: Some(pager(Bytes(0))),
    }
}

fn actions(decisions: &[Decision]) -> Vec<&'static str> {
    decisions.iter().map(|decision| decision.action.name()).collect()
}

#[test]
fn memory_is_taken_in_the_order_of_what_it_costs() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 64), Pages(0));
    let balloon = BalloonUse { target: Pages(5120), given: Pages(5120), hints: true };
    let seen = PressureSnapshot { balloon: Some(balloon), ..moment(0, 50) };
    // The balloon has 20 MiB, and 250 of 256 MiB are resident. Its credit is still small.
    let first = policy.decide(&seen);
    assert_eq!(actions(&first), ["discard", "hint", "evict"], "{first:?}");
    let second = policy.decide(&PressureSnapshot { balloon: Some(balloon), ..moment(1, 50) });
    assert_eq!(actions(&second), ["balloon", "evict"], "{second:?}");
    assert!(second[0].reason.contains("the host is short: 50 MiB available"), "{second:?}");
    assert!(second[0].reason.contains("the guest has 100 MiB free"), "{second:?}");
}

#[test]
fn a_gentle_policy_leaves_a_guest_alone_until_the_host_is_tight() {
    let mut policy = Policy::new(limits(PolicyPreset::Gentle, 64), Pages(0));
    assert!((0..100).all(|round| policy.decide(&moment(round, 2000)).is_empty()));
    let tight = policy.decide(&moment(100, 350));
    assert_eq!(actions(&tight), ["balloon"], "{tight:?}");
    // Cold memory is evicted only when the host is short, after inflation.
    let full = |round, available| PressureSnapshot {
        guest: Some(GuestFigures {
            at: Duration::from_secs(round),
            available: Bytes(50 * MIB),
            ..GuestFigures::default()
        }),
        ..moment(round, available)
    };
    assert!(policy.decide(&full(101, 350)).is_empty());
    assert_eq!(actions(&policy.decide(&full(102, 100))), ["evict"]);
}

/// With free page reporting the host has the guest's free memory already.
#[test]
fn free_memory_that_the_host_has_is_not_ballooned() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 64), Pages(0));
    let seen = |resident_mib, cache_mib| PressureSnapshot {
        memory: MemoryUse { total: GUEST, resident: Bytes(resident_mib * MIB) },
        guest: moment(0, 350)
            .guest
            .map(|told| GuestFigures { available: Bytes(told.free.0 + cache_mib * MIB), ..told }),
        ..moment(0, 350)
    };
    // 100 of 256 MiB are free.
    assert_eq!(actions(&policy.decide(&seen(156, 0))), ["evict"]);
    assert_eq!(actions(&policy.decide(&seen(160, 2))), ["evict"]);
    assert_eq!(actions(&policy.decide(&seen(156, 40))), ["balloon"]);
    assert_eq!(actions(&policy.decide(&seen(200, 0))), ["balloon"]);
}

#[test]
fn a_dense_policy_evicts_cold_memory_at_all_times() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 64), Pages(0));
    let decisions = policy.decide(&moment(0, 4000));
    let [Decision { action: Action::Evict { blocks, trial }, .. }] = decisions[..] else {
        panic!("{decisions:?}");
    };
    assert!(blocks >= 1);
    assert!((9..12).contains(&trial.as_secs()), "{trial:?}: the break-even");
    // The same block is worth more time to a host that is short.
    let decisions = policy.decide(&moment(1, 100));
    let last = decisions.last().unwrap().action;
    assert!(
        matches!(last, Action::Evict { trial, .. } if trial < Duration::from_secs(2)),
        "{last}"
    );
}

#[test]
fn a_guest_that_hurts_gets_memory_back_and_is_left_alone_for_longer_each_time() {
    let mut policy = Policy::new(limits(PolicyPreset::Gentle, 64), Pages(0));
    let balloon = Some(BalloonUse { target: Pages(25600), given: Pages(25600), hints: false });
    let mut round = 0;
    let mut stalls = 0;
    let mut pauses = Vec::new();
    for _ in 0..3 {
        round += 1;
        stalls += 100;
        let told = moment(round, 300).guest.map(|told| GuestFigures { stalls, ..told });
        let hurt = policy.decide(&PressureSnapshot { guest: told, balloon, ..moment(round, 300) });
        if round > 1 {
            let [Decision { action: Action::SetBalloon(target), reason }] = &hurt[..] else {
                panic!("{hurt:?}");
            };
            assert!(*target < Pages(25600) && reason.contains("allocations"), "{reason}");
        }
        let mut pause = 0;
        loop {
            round += 1;
            let guest = moment(round, 300).guest.map(|told| GuestFigures { stalls, ..told });
            if !policy.decide(&PressureSnapshot { guest, balloon, ..moment(round, 300) }).is_empty()
            {
                break;
            }
            pause += 1;
        }
        pauses.push(pause);
    }
    assert!(pauses[1] >= 7 && pauses[2] >= pauses[1] * 2, "{pauses:?}");
}

#[test]
fn eviction_backs_off_when_the_guest_wants_blocks_back() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 0), Pages(0));
    let evicted = (0..1000)
        .filter(|&round| {
            // Everything that was evicted is accessed immediately.
            let paging = PagingUse { touched_blocks: round * 10, ..pager(Bytes(20 * MIB)) };
            let decisions =
                policy.decide(&PressureSnapshot { paging: Some(paging), ..moment(round, 4000) });
            actions(&decisions).contains(&"evict")
        })
        .count();
    assert!(evicted <= 1, "{evicted}");
}

#[test]
fn what_stays_away_is_compressed_once_more_when_nothing_else_is_to_be_done() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 250), Pages(0));
    let paging = PagingUse { repackable: 40, ..pager(Bytes(100 * MIB)) };
    let seen = |round| PressureSnapshot { paging: Some(paging), ..moment(round, 4000) };
    let rounds: Vec<_> = (0..3).map(|round| policy.decide(&seen(round))).collect();
    let [.., last] = &rounds[..] else { panic!("{rounds:?}") };
    assert!(matches!(last[..], [Decision { action: Action::Repack(1..=32), .. }]), "{last:?}");
    let busy = PagingUse { busy: true, ..paging };
    assert!(policy.decide(&PressureSnapshot { paging: Some(busy), ..seen(3) }).is_empty());
}

#[test]
fn trials_and_recompression_take_turns() {
    let mut policy = Policy::new(limits(PolicyPreset::Dense, 64), Pages(0));
    let paging = PagingUse { repackable: 40, ..pager(Bytes(20 * MIB)) };
    let seen =
        |round, available| PressureSnapshot { paging: Some(paging), ..moment(round, available) };
    let took: Vec<_> =
        (0..4).flat_map(|round| actions(&policy.decide(&seen(round, 4000)))).collect();
    assert_eq!(took, ["evict", "repack", "evict", "repack"]);
    // A host that is short needs memory at once.
    let short: Vec<_> = (4..7).map(|round| actions(&policy.decide(&seen(round, 50)))).collect();
    assert!(short.iter().all(|took| !took.contains(&"repack")), "{short:?}");
}

#[test]
fn an_awake_guest_gets_everything_back_from_a_comfortable_host() {
    let mut policy = Policy::new(limits(PolicyPreset::Gentle, 0), Pages(0));
    let seen = |round: u64, touched_blocks| {
        let paging = PagingUse { touched_blocks, ..pager(Bytes(100 * MIB)) };
        PressureSnapshot { paging: Some(paging), ..moment(round, 4000) }
    };
    (0..60).for_each(|round| drop(policy.decide(&seen(round, 0))));
    assert_eq!(actions(&policy.decide(&seen(60, 12))), ["unpark"]);
    assert!(policy.decide(&seen(61, 12)).is_empty());
}

#[test]
fn a_clients_target_stands_until_the_policy_is_set_again() {
    let mut policy = Policy::new(limits(PolicyPreset::Gentle, 0), Pages(0));
    assert_eq!(actions(&policy.decide(&moment(0, 300))), ["balloon"]);
    policy.hold_balloon(Pages(1000));
    assert!(policy.decide(&moment(1, 300)).is_empty());
    policy.set_limits(limits(PolicyPreset::Gentle, 0));
    let decisions = policy.decide(&moment(2, 300));
    assert_eq!(actions(&decisions), ["balloon"]);
    // Switched off, the target is the client's last one.
    policy.set_limits(limits(PolicyPreset::Off, 0));
    let off = policy.decide(&moment(3, 300));
    assert_eq!(off[0].action, Action::SetBalloon(Pages(1000)));
}

#[test]
fn the_ceiling_is_kept_although_the_host_has_plenty() {
    let ceiling = Limits { ceiling: Some(Bytes(200 * MIB)), ..limits(PolicyPreset::Gentle, 64) };
    let mut policy = Policy::new(ceiling, Pages(0));
    let decisions = policy.decide(&moment(0, 4000));
    assert_eq!(actions(&decisions), ["balloon"]);
    assert!(decisions[0].reason.contains("250 MiB resident, ceiling 200 MiB"), "{decisions:?}");
}
