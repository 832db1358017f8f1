// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames in both directions, whole and unharmed.

use proptest::prelude::*;

use super::*;

#[test]
fn configuration_tells_address_pairs_and_mtu() {
    let rig = Rig::new();
    assert_eq!(rig.driver.config(0).to_le_bytes(), [2, 0, 0, 0]);
    assert_eq!(rig.driver.config(4).to_le_bytes(), [0, 1, 0, 0]);
    assert_eq!(rig.driver.config(8).to_le_bytes(), [1, 0, 0xdc, 5]);
}

#[test]
fn a_frame_leaves_as_it_was_cut_or_not() {
    let mut rig = Rig::new();
    rig.send(&pattern(1, 60));
    assert_eq!(rig.left(0), Some(pattern(1, 60)));
    // Header and frame in many pieces, the header split.
    let frame = pattern(2, 9000);
    let at = rig.driver.put(&[&[0; HEADER_LEN], &frame[..]].concat());
    let cuts = [0u64, 3, 11, 500, 501, 8000, (HEADER_LEN + frame.len()) as u64];
    let chain: Vec<_> = cuts
        .windows(2)
        .map(|cut| MockDescriptor::readable(GuestAddress(at.0 + cut[0]), (cut[1] - cut[0]) as u32))
        .collect();
    rig.driver.send(TX, &chain);
    assert_eq!(rig.left(0), Some(frame));
    assert_eq!(count(&rig.handle.counters().tx_packets_count), 2);
}

#[test]
fn a_frame_arrives_in_one_buffer_with_its_header() {
    let mut rig = Setup { features: NO_LARGE, ..Setup::default() }.start();
    let (head, at) = rig.post(2048, 5);
    rig.arrive(0, &pattern(3, 1400));
    assert_eq!(rig.driver.used(RX), Some((head, 1412)));
    let bytes = rig.bytes(at, 1412);
    assert_eq!(bytes[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[HEADER_LEN..], pattern(3, 1400));
    assert!(rig.driver.interrupts() > 0);
}

#[test]
fn a_large_frame_is_spread_over_as_many_buffers_as_it_needs() {
    let mut rig = Rig::new();
    let posted: Vec<_> = (0..40).map(|_| rig.post(4096, 1)).collect();
    let frame = pattern(4, 65_000);
    rig.arrive(0, &frame);
    let mut whole = Vec::new();
    for (head, at) in &posted[..16] {
        let (used, len) = rig.driver.used(RX).unwrap();
        assert_eq!(used, *head);
        whole.extend(rig.bytes(*at, len as usize));
    }
    assert_eq!(rig.driver.used(RX), None);
    assert_eq!(whole[10..12], [16, 0], "number of buffers");
    assert!(whole[HEADER_LEN..] == frame);
}

#[test]
fn a_frame_waits_for_room_and_is_not_cut_off() {
    let mut rig = Rig::new();
    rig.arrive(0, &pattern(5, 60_000));
    // Room for a part of the longest frame is not enough.
    let mut posted = vec![rig.post(4096, 1), rig.post(4096, 1)];
    rig.driver.notify(RX);
    rig.driver.run();
    assert_eq!(rig.driver.used(RX), None);
    posted.extend((0..20).map(|_| rig.post(4096, 1)));
    rig.driver.notify(RX);
    rig.driver.run();
    let lens: u32 = std::iter::from_fn(|| rig.driver.used(RX)).map(|(_, len)| len).sum();
    assert_eq!(lens, 60_012);
    assert!(count(&rig.handle.counters().no_rx_avail_buffer) > 0);
}

#[test]
fn a_guest_with_a_small_queue_still_receives() {
    let mut rig = Rig::new();
    // All of its 64 entries, together less than the longest frame.
    for _ in 0..64 {
        rig.post(1000, 1);
    }
    rig.arrive(0, &pattern(6, 1500));
    assert_eq!(rig.driver.used(RX).unwrap().1, 1000);
    assert_eq!(rig.driver.used(RX).unwrap().1, 512);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any buffers that the guest gives, frames come out of them whole and in order.
    #[test]
    fn frames_arrive_whole_and_in_order(
        buffers in prop::collection::vec((13u32..5000, 1u32..4), 1..60),
        frames in prop::collection::vec(1usize..1500, 1..12),
    ) {
        let mut rig = Setup { features: NO_LARGE, ..Setup::default() }.start();
        let mut posted = std::collections::VecDeque::new();
        for (len, parts) in buffers {
            if rig.driver.room(RX) >= parts as usize {
                posted.push_back((rig.post(len, parts), len));
            }
        }
        rig.driver.notify(RX);
        for (seed, len) in frames.iter().enumerate() {
            rig.arrive(0, &pattern(seed, *len));
        }
        let mut seed = 0;
        while let Some((head, len)) = rig.driver.used(RX) {
            let ((expected, at), _) = posted.pop_front().unwrap();
            prop_assert_eq!(head, expected);
            let mut bytes = rig.bytes(at, len as usize);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let (head, len) = rig.driver.used(RX).unwrap();
                let ((expected, at), _) = posted.pop_front().unwrap();
                prop_assert_eq!(head, expected);
                bytes.extend(rig.bytes(at, len as usize));
            }
            prop_assert!(bytes[HEADER_LEN..] == pattern(seed, frames[seed]));
            seed += 1;
        }
        // The remaining frames are not lost: they wait for room.
        let room: u32 = posted.iter().map(|(_, len)| len).sum();
        prop_assert!(seed == frames.len() || room < 1534, "{} of {}", seed, frames.len());
    }
}
