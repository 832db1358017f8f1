// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laws of a policy, for any figures.

use proptest::prelude::*;

use super::*;

fn preset() -> impl Strategy<Value = PolicyPreset> {
    prop_oneof![Just(PolicyPreset::Gentle), Just(PolicyPreset::Dense)]
}

prop_compose! {
    fn any_snapshot()(
        available in 0u64..4000,
        some in prop::option::of(0.0f64..30.0),
        resident in 0u64..256,
        free in 0u64..200,
        cache in 0u64..100,
        has in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        target in 0u64..60_000,
        lag in 0u64..2000,
        absent in 0u64..100,
        counters in (0u64..1000, 0u64..1000, 0u64..100),
    ) -> PressureSnapshot {
        let balloon = BalloonUse {
            target: Pages(target),
            given: Pages(target.saturating_sub(lag)),
            hints: has.3,
        };
        let told = GuestFigures {
            at: Duration::ZERO,
            free: Bytes(free * MIB),
            available: Bytes((free + cache) * MIB),
            stalls: counters.0,
            major_faults: counters.1,
            ..GuestFigures::default()
        };
        let paging = PagingUse { touched_blocks: counters.2, ..pager(Bytes(absent * MIB)) };
        let host = HostFigures { available: Some(available * MIB), some, ..moment(0, 0).host };
        PressureSnapshot {
            host,
            memory: MemoryUse { total: GUEST, resident: Bytes(resident * MIB) },
            guest: has.0.then_some(told),
            balloon: has.1.then_some(balloon),
            paging: has.2.then_some(paging),
            ..moment(0, 0)
        }
    }
}

/// `seen` at another time, with figures that are new.
fn at(round: u64, seen: &PressureSnapshot) -> PressureSnapshot {
    let now = Duration::from_secs(round + 1);
    PressureSnapshot {
        now,
        guest: seen.guest.map(|told| GuestFigures { at: now, ..told }),
        ..*seen
    }
}

proptest! {
    /// For any sequence of snapshots: no target leaves the guest less than its floor, none is below
    /// the client's, and no more blocks are tried than the floor leaves.
    #[test]
    fn never_below_the_floor(
        preset in preset(),
        floor in 0u64..256,
        base in 0u64..30_000,
        seen in prop::collection::vec(any_snapshot(), 1..40),
    ) {
        let base = Pages(base);
        let floor = Bytes(floor * MIB);
        let mut policy = Policy::new(limits(preset, floor.as_mib()), base);
        for (round, snapshot) in seen.iter().enumerate() {
            let now = at(round as u64, snapshot);
            for decision in policy.decide(&now) {
                prop_assert!(!decision.reason.is_empty());
                match decision.action {
                    Action::SetBalloon(target) => {
                        prop_assert!(target >= base);
                        let left = GUEST.saturating_sub(target.bytes());
                        prop_assert!(left >= floor || target == base, "{target} of floor {floor}");
                    }
                    Action::Evict { blocks, .. } => {
                        let after = now.memory.resident.0.saturating_sub(blocks as u64 * BLOCK_SIZE);
                        prop_assert!(after >= floor.0, "{blocks} blocks");
                    }
                    _ => {}
                }
            }
        }
    }

    /// While nothing changes, the balloon is moved in one direction only.
    #[test]
    fn no_swinging_under_constant_input(preset in preset(), floor in 0u64..128, seen in any_snapshot()) {
        let mut policy = Policy::new(limits(preset, floor), Pages(0));
        let mut up = 0;
        let mut down = 0;
        for round in 0..300 {
            for decision in policy.decide(&at(round, &seen)) {
                if let (Action::SetBalloon(target), Some(now)) = (decision.action, seen.balloon) {
                    up += u32::from(target > now.target);
                    down += u32::from(target < now.target);
                }
            }
        }
        prop_assert!(up == 0 || down == 0, "{up} times up, {down} times down");
    }

    /// The balloon is never inflated in a round in which the guest is short of memory.
    #[test]
    fn a_guest_that_hurts_loses_nothing(preset in preset(), seen in any_snapshot()) {
        let mut policy = Policy::new(limits(preset, 0), Pages(0));
        policy.decide(&at(0, &seen));
        let told = seen.guest.map(|told| GuestFigures { kills: told.kills + 1, ..told });
        let hurt = PressureSnapshot { guest: told, ..seen };
        for decision in policy.decide(&at(1, &hurt)) {
            if let (Action::SetBalloon(target), Some(_), Some(balloon)) =
                (decision.action, told, seen.balloon)
            {
                prop_assert!(target <= balloon.target);
            }
        }
    }

    /// With a guest that follows and a host that reacts, the balloon converges.
    #[test]
    fn comes_to_rest(
        preset in preset(),
        host_mib in 100u64..1200,
        used_mib in 20u64..200,
        cache_share in 0u64..100,
    ) {
        let mut policy = Policy::new(limits(preset, 48), Pages(0));
        let cache = (256 - used_mib) * cache_share / 100;
        let mut balloon = BalloonUse::default();
        let mut targets = Vec::new();
        for round in 0..600 {
            let given = balloon.given.bytes().as_mib();
            let rest = 256 - used_mib.min(256 - given) - given;
            let cache = cache.min(rest);
            let free = rest - cache;
            let resident = used_mib + cache;
            let now = Duration::from_secs(round + 1);
            let seen = PressureSnapshot {
                memory: MemoryUse { total: GUEST, resident: Bytes(resident * MIB) },
                guest: Some(GuestFigures {
                    at: now,
                    free: Bytes(free * MIB),
                    available: Bytes(rest * MIB),
                    ..GuestFigures::default()
                }),
                balloon: Some(balloon),
                paging: None,
                ..moment(round, (host_mib + 256).saturating_sub(resident))
            };
            for decision in policy.decide(&seen) {
                if let Action::SetBalloon(target) = decision.action {
                    balloon.target = target;
                }
            }
            balloon.given = balloon.target;
            targets.push(balloon.target.0);
        }
        let late = &targets[400..];
        let swing = late.iter().max().unwrap() - late.iter().min().unwrap();
        let step = policy.limits().step.as_pages().0;
        prop_assert!(swing <= step, "swings by {swing} pages: {late:?}");
    }
}
