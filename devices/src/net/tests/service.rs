// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP service on the interface: handshakes, requests, losses, and guests that do none of it
//! right.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::net::mock::MockClient;

const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const MAC: [u8; 6] = [6, 1, 0x23, 0x45, 0x67, 1];
/// Time that a connection has for a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replies to a line with as many copies of its first byte as the line's length times 1000; a line
/// that begins with `!` is the last.
struct Lines;

impl Service for Lines {
    fn answer(&mut self, received: &[u8], full: bool, _now: Instant) -> Exchange {
        match received.iter().position(|byte| *byte == b'\n') {
            Some(at) => Exchange::Reply {
                consumed: at + 1,
                bytes: vec![received[0]; 1000 * at],
                close: received[0] == b'!',
            },
            None if full => {
                Exchange::Reply { consumed: received.len(), bytes: b"long".into(), close: true }
            }
            None => Exchange::Incomplete,
        }
    }
}

fn service() -> (TcpService, Arc<TcpCounters>) {
    let counters = Arc::<TcpCounters>::default();
    let service = TcpService::new(SERVER, 80, MAC, Box::new(Lines), counters.clone()).unwrap();
    (service, counters)
}

fn client(now: Instant) -> MockClient {
    MockClient::new(GUEST, (SERVER, 80), now)
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let (mut service, counters) = service();
    let now = Instant::now();
    let mut client = client(now);
    let connection = client.connect();
    client.settle(&mut service, now);
    assert!(client.is_established(connection));
    client.send(connection, b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nbb\nc");
    client.settle(&mut service, now);
    let received = client.received(connection);
    assert!(received == [vec![b'a'; 30_000], vec![b'b'; 2000]].concat(), "{}", received.len());
    client.send(connection, b"\n");
    client.settle(&mut service, now);
    assert!(client.received(connection) == vec![b'c'; 1000]);
    client.close(connection);
    client.settle(&mut service, now);
    assert!(client.is_closed(connection));
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&counters.connections_created), 1);
    assert_eq!(count(&counters.connections_destroyed), 1);
    assert_eq!(count(&counters.rx_count), count(&counters.rx_accepted));
    assert!(count(&counters.tx_bytes) > 33_000);
}

#[test]
fn a_service_that_closes_has_room_for_the_next_connection_at_once() {
    let (mut service, _) = service();
    let now = Instant::now();
    let mut client = client(now);
    for _ in 0..100 {
        assert_eq!(client.exchange(&mut service, b"!!\n", now), [b'!'; 2000]);
    }
}

#[test]
fn lost_frames_are_sent_again() {
    let (mut service, _) = service();
    let mut now = Instant::now();
    let mut client = client(now);
    client.lose_every = 5;
    let connection = client.connect();
    let mut received = Vec::new();
    let mut asked = false;
    for _ in 0..1000 {
        client.settle(&mut service, now);
        if client.is_established(connection) && !asked {
            client.send(connection, b"aaaaaaaaaaaaaaaaaaaa\n");
            asked = true;
        }
        received.extend(client.received(connection));
        if received.len() == 20_000 {
            break;
        }
        // The device's deadline, if it is before the client's.
        let due = service.next_deadline(now).expect("a timer while a connection is open");
        assert!(due > now);
        now = due.min(now + Duration::from_millis(50));
    }
    assert!(received == vec![b'a'; 20_000], "{}", received.len());
}

#[test]
fn requests_without_end_are_refused() {
    let (mut service, _) = service();
    let now = Instant::now();
    let mut client = client(now);
    assert_eq!(client.exchange(&mut service, &[b'x'; MAX_REQUEST], now), b"long");
    assert_eq!(client.exchange(&mut service, b"a\n", now), [b'a'; 1000]);
}

#[test]
fn connections_without_requests_end_and_make_room() {
    let (mut service, counters) = service();
    let now = Instant::now();
    let mut client = client(now);
    let mut open: Vec<_> = (0..30).map(|_| client.connect()).collect();
    client.settle(&mut service, now);
    assert!(open.iter().all(|connection| client.is_established(*connection)));
    // One more is refused, and one that goes on is not ended.
    let refused = client.connect();
    client.settle(&mut service, now);
    assert!(client.is_closed(refused));
    let busy = open.pop().unwrap();
    client.send(busy, b"a\n");
    client.settle(&mut service, now + PATIENCE / 2);
    let due = service.next_deadline(now + PATIENCE / 2).unwrap();
    assert!(due <= now + PATIENCE);
    client.settle(&mut service, now + PATIENCE);
    assert!(open.iter().all(|connection| client.is_closed(*connection)));
    assert!(client.is_established(busy));
    let ended = counters.connections_destroyed.load(Ordering::Relaxed);
    assert_eq!(ended, 30, "29 and the one refused");
    assert_eq!(client.exchange(&mut service, b"a\n", now + PATIENCE), [b'a'; 1000]);
}

/// The first frame of a connection from `port`: Ethernet, IPv4 and TCP with SYN, without
/// checksums, as a guest leaves them to its network card.
fn syn(port: u16) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 1], &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(GUEST.octets());
    frame.extend(SERVER.octets());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

#[test]
fn half_open_connections_are_bounded_and_end() {
    let (mut service, _) = service();
    let now = Instant::now();
    for port in 1000..2000 {
        assert!(service.wants(&syn(port)));
        service.take(&syn(port), now, &mut Deadline::never());
        assert!(service.waiting() <= 64);
    }
    // The guest must receive frames first.
    assert_eq!(service.next_deadline(now), None);
    let mut frame = Vec::new();
    while service.give(&mut frame, now, &mut Deadline::never()) {}
    let mut client = MockClient::new(Ipv4Addr::new(172, 16, 0, 3), (SERVER, 80), now);
    let mut late = now;
    let connection = client.connect();
    client.settle(&mut service, late);
    assert!(!client.is_established(connection));
    while let Some(due) = service.next_deadline(late) {
        assert!(due > late && due <= now + PATIENCE + Duration::from_millis(2));
        late = due;
        while service.give(&mut frame, late, &mut Deadline::never()) {}
    }
    assert_eq!(client.exchange(&mut service, b"a\n", late), [b'a'; 1000]);
}

#[test]
fn a_guest_that_takes_no_frames_is_held_no_more_than_its_share() {
    let (mut service, counters) = service();
    let now = Instant::now();
    // ARP requests from a thousand addresses.
    for sender in 0..1000u16 {
        let [high, low] = sender.to_be_bytes();
        let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, high, low], &[8, 6]].concat();
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, high, low, 172, 16, high, low]);
        frame.extend([0; 6]);
        frame.extend(SERVER.octets());
        assert!(service.wants(&frame));
        service.take(&frame, now, &mut Deadline::never());
    }
    assert_eq!(service.waiting(), 64);
    assert!(counters.rx_accepted_err.load(Ordering::Relaxed) > 900);
    let mut frame = Vec::new();
    assert!(service.give(&mut frame, now, &mut Deadline::never()));
    assert_eq!(frame[6..12], MAC);
    assert_eq!(frame[12..14], [8, 6]);
    assert_eq!(frame[28..32], SERVER.octets());
}

#[test]
fn frames_for_other_hosts_are_the_taps() {
    let (service, _) = service();
    for frame in [&[][..], &[0; 13], &[0; 60], &syn(1)[..33]] {
        assert!(!service.wants(frame));
    }
    let mut other = syn(1);
    other[33] = 1;
    assert!(!service.wants(&other));
    // IPv6.
    other[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert!(!service.wants(&other));
}

#[test]
fn a_reset_ends_connections() {
    let (mut service, counters) = service();
    let now = Instant::now();
    let mut client = client(now);
    let connection = client.connect();
    client.settle(&mut service, now);
    client.send(connection, b"a");
    client.settle(&mut service, now);
    service.reset();
    assert_eq!(counters.connections_destroyed.load(Ordering::Relaxed), 1);
    assert_eq!(service.next_deadline(now), None);
    client.send(connection, b"\n");
    let now = now + PATIENCE;
    client.settle(&mut service, now);
    assert!(client.is_closed(connection));
    assert_eq!(client.exchange(&mut service, b"a\n", now), [b'a'; 1000]);
}

#[test]
fn the_guest_reaches_the_service_through_its_queues() {
    let (service, counters) = service();
    let mut rig = Setup { responder: Some(Box::new(service)), ..Setup::default() }.start();
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    // An ARP request in broadcast does not reach the wire.
    let mut request = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 6]].concat();
    request.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 172, 16, 0, 2]);
    request.extend([0; 6]);
    request.extend(SERVER.octets());
    rig.send(&request);
    assert_eq!(rig.left(0), None);
    assert_eq!(rig.driver.used(RX).unwrap().1, 12 + 42);
    rig.send(&syn(5000));
    assert!(rig.driver.used(RX).unwrap().1 >= 12 + 54);
    assert_eq!(counters.tx_frames.load(Ordering::Relaxed), 2);
}

proptest! {
    /// After any frames from a guest, a valid connection succeeds.
    #[test]
    fn no_frames_are_too_much(
        frames in prop::collection::vec(
            (any::<u16>(), prop::collection::vec((0usize..200, any::<u8>()), 0..6), 0usize..3000),
            1..100),
    ) {
        let (mut service, _) = service();
        let now = Instant::now();
        for (port, changes, more) in frames {
            let mut frame = syn(port % 4);
            frame.resize(frame.len() + more, 0x20);
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if service.wants(&frame) {
                service.take(&frame, now, &mut Deadline::never());
            }
            prop_assert!(service.waiting() <= 64);
        }
        let mut frame = Vec::new();
        while service.give(&mut frame, now, &mut Deadline::never()) {}
        let late = now + PATIENCE;
        while service.give(&mut frame, late, &mut Deadline::never()) {}
        let mut client = client(now);
        prop_assert_eq!(client.exchange(&mut service, b"a\n", late), [b'a'; 1000]);
    }
}
