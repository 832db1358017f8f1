// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Misbehaving guests, and hosts that disappear.

use super::*;
use crate::virtio::{Deadline, Progress, VirtioDevice};

#[test]
fn frames_that_are_none_come_back_and_do_not_leave() {
    let mut rig = Rig::new();
    let at = rig.driver.put(&[0; 4096]);
    let outside = GuestAddress(RAM as u64 - 8);
    let chains = [
        vec![MockDescriptor::readable(at, HEADER_LEN as u32)],
        vec![MockDescriptor::readable(at, 1)],
        vec![MockDescriptor::readable(at, 4096); 17],
        vec![MockDescriptor::readable(outside, 64)],
        vec![MockDescriptor::writable(at, 64)],
    ];
    for chain in chains {
        assert_eq!(rig.driver.send(TX, &chain), 0);
        assert_eq!(rig.left(0), None);
    }
    let counters = rig.handle.counters();
    assert_eq!(count(&counters.tx_malformed_frames) + count(&counters.event_fails), 5);
    rig.send(&pattern(1, 60));
    assert!(rig.left(0).is_some());
    assert!(!rig.driver.needs_reset());
}

#[test]
fn buffers_without_room_for_a_header_come_back() {
    let mut rig =
        Setup { features: !feature::GUEST_TSO4 & !feature::GUEST_TSO6, ..Setup::default() }.start();
    let (small, _) = rig.post(12, 1);
    let at = rig.driver.put(&[0; 64]);
    let readable = rig.driver.add(RX, &[MockDescriptor::readable(at, 64)]);
    let (good, _) = rig.post(2000, 1);
    rig.arrive(0, &pattern(1, 100));
    let used: Vec<_> = std::iter::from_fn(|| rig.driver.used(RX)).collect();
    assert_eq!(used, [(small, 0), (readable, 0), (good, 112)]);
}

#[test]
fn a_flood_is_sent_in_rounds() {
    let mut rig = Rig::new();
    let at = rig.driver.put(&[0; 1500]);
    for _ in 0..60 {
        rig.driver.add(TX, &[MockDescriptor::readable(at, 1500)]);
    }
    let mut deadline = Deadline::of_work(40_000);
    let progress = rig.device.lock().process(TX, &mut deadline).unwrap();
    assert_eq!(progress, Progress::More);
    assert!(deadline.spent() < 45_000);
    rig.driver.notify(TX);
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(TX)).count(), 60);
}

#[test]
fn frames_to_a_host_that_is_gone_are_lost_and_nothing_else() {
    let mut rig = Rig::new();
    rig.wires.clear();
    for seed in 0..3 {
        rig.send(&pattern(seed, 100));
    }
    assert_eq!(count(&rig.handle.counters().tap_write_fails), 3);
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    rig.tell(0);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", "a-name-of-16-byt", "a/b", "a\0"] {
        assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name:?}");
    }
}

#[test]
fn a_tap_that_is_taken_or_made_otherwise_is_refused_with_advice() {
    let name = format!("bt{}", std::process::id());
    let first = match Tap::open(&name, 1) {
        Ok(first) => first,
        Err(error @ (TapError::Open(_) | TapError::Attach { .. })) => {
            eprintln!("skipped, as this host makes no TAP: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let taken = Tap::open(&name, 1).unwrap_err().to_string();
    assert!(taken.contains(&name) && taken.contains("another process uses it"), "{taken}");
    let other = Tap::open(&name, 2).unwrap_err().to_string();
    assert!(other.contains("multi_queue") || other.contains("another process"), "{other}");
    // The interface disappears with its last user.
    drop(first);
    assert_eq!(Tap::open(&name, 2).unwrap().len(), 2);
    let loopback = Tap::open("lo", 1).unwrap_err().to_string();
    assert!(loopback.contains("it is not a TAP"), "{loopback}");
}
