// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stream to a process in place of a TAP: frames whole and bare, a process that is slow, one that
//! ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::*;

/// Offset of the link's state in configuration space.
const STATUS: u64 = 6;

fn start() -> (Rig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = Link::Stream(FrameStream::new(ours.into()));
    (Setup::default().start_over(vec![link]), theirs)
}

fn put_frame(peer: &mut UnixStream, frame: &[u8]) {
    let len = u32::try_from(frame.len()).unwrap();
    peer.write_all(&[&len.to_be_bytes(), frame].concat()).unwrap();
}

fn take_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

fn link_is_up(rig: &Rig) -> bool {
    rig.driver.config(STATUS) & 1 != 0
}

#[test]
fn offers_what_it_can_do_without_a_kernel_behind_it() {
    let (rig, _peer) = start();
    let offered = rig.driver.offered();
    let offloads = feature::CSUM
        | feature::GUEST_CSUM
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::GUEST_TSO4
        | feature::GUEST_TSO6;
    assert_eq!(offered & offloads, 0, "{offered:#x}");
    let wanted = feature::STATUS | feature::MRG_RXBUF | 1 << VIRTIO_F_VERSION_1;
    assert_eq!(offered & wanted, wanted, "{offered:#x}");
    assert!(link_is_up(&rig));
    // A TAP is the other way around.
    assert_eq!(Rig::new().driver.offered() & (offloads | feature::STATUS), offloads);
}

#[test]
fn frames_cross_whole_in_both_directions() {
    let (mut rig, mut peer) = start();
    for (seed, len) in [(1, 60), (2, 1514), (3, 9000), (4, 65_000)] {
        rig.send(&pattern(seed, len));
        assert_eq!(take_frame(&mut peer), pattern(seed, len));
    }
    assert_eq!(count(&rig.handle.counters().tx_packets_count), 4);

    let posted: Vec<_> = (0..40).map(|_| rig.post(1526, 1)).collect();
    put_frame(&mut peer, &pattern(5, 200));
    put_frame(&mut peer, &pattern(6, 9000));
    rig.tell(0);
    assert_eq!(rig.driver.used(RX), Some((posted[0].0, 212)));
    let bytes = rig.bytes(posted[0].1, 212);
    assert_eq!(bytes[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[HEADER_LEN..], pattern(5, 200));
    let mut whole = Vec::new();
    for (head, at) in &posted[1..7] {
        let (used, len) = rig.driver.used(RX).unwrap();
        assert_eq!(used, *head);
        whole.extend(rig.bytes(*at, len as usize));
    }
    assert_eq!(whole[10..HEADER_LEN], [6, 0], "number of buffers");
    assert!(whole[HEADER_LEN..] == pattern(6, 9000));
    assert_eq!(rig.driver.used(RX), None);
}

#[test]
fn a_frame_waits_for_buffers_and_is_not_lost() {
    let (mut rig, mut peer) = start();
    rig.post(1526, 1);
    put_frame(&mut peer, &pattern(1, 4000));
    rig.tell(0);
    assert_eq!(rig.driver.used(RX), None);
    assert!(count(&rig.handle.counters().no_rx_avail_buffer) > 0);
    for _ in 0..2 {
        rig.post(1526, 1);
    }
    rig.driver.notify(RX);
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(RX)).map(|used| used.1).sum::<u32>(), 4012);
}

#[test]
fn a_process_that_does_not_read_holds_the_guest_back_without_a_loss() {
    let (mut rig, mut peer) = start();
    const FRAMES: usize = 40;
    const LEN: usize = 30_000;
    let at = rig.driver.put(&[&[0; HEADER_LEN], &pattern(9, LEN)[..]].concat());
    let len = u32::try_from(HEADER_LEN + LEN).unwrap();
    for _ in 0..FRAMES {
        rig.driver.add(TX, &[MockDescriptor::readable(at, len)]);
    }
    rig.driver.notify(TX);
    rig.driver.run();
    let mut taken = std::iter::from_fn(|| rig.driver.used(TX)).count();
    assert!(taken < FRAMES, "nothing was held back");
    let transport = Arc::clone(rig.driver.transport());
    let reader = std::thread::spawn(move || {
        (0..FRAMES).filter(|_| take_frame(&mut peer) == pattern(9, LEN)).count()
    });
    // What the event loop does when the stream can be written to.
    while taken < FRAMES || !reader.is_finished() {
        transport.process_queue(TX);
        rig.driver.run();
        taken += std::iter::from_fn(|| rig.driver.used(TX)).count();
        std::thread::yield_now();
    }
    assert_eq!(reader.join().unwrap(), FRAMES);
    assert_eq!(count(&rig.handle.counters().tap_write_fails), 0);
}

#[test]
fn the_end_of_the_process_takes_the_link_down_and_nothing_else() {
    let (mut rig, peer) = start();
    for _ in 0..4 {
        rig.post(1526, 1);
    }
    drop(peer);
    rig.driver.acknowledge();
    rig.tell(0);
    assert!(!link_is_up(&rig));
    assert_eq!(rig.driver.acknowledge() & 2, 2, "no interrupt for the configuration");
    rig.send(&pattern(1, 60));
    assert_eq!(count(&rig.handle.counters().tap_write_fails), 1);
    rig.tell(0);
    assert_eq!(rig.driver.acknowledge() & 2, 0, "told twice");
    assert!(!rig.driver.needs_reset());
    // A driver that starts again finds it so.
    rig.driver.reset();
    rig.driver.probe(u64::MAX, 2);
    assert!(!link_is_up(&rig));
    assert!(!rig.driver.needs_reset());
}

#[test]
fn a_process_that_talks_nonsense_is_taken_for_gone() {
    let (mut rig, mut peer) = start();
    for _ in 0..4 {
        rig.post(1526, 1);
    }
    put_frame(&mut peer, &pattern(1, 60));
    peer.write_all(&[0xff; 100]).unwrap();
    rig.tell(0);
    assert_eq!(rig.driver.used(RX).map(|used| used.1), Some(72));
    assert!(!link_is_up(&rig));
    assert!(!rig.driver.needs_reset());
}
