// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use proptest::prelude::*;

use super::frame_fields::{ARP, ETHERTYPE, IPV4};
use super::*;
use crate::net::mock::{MockClient, MockConnection};
use crate::net::tcp_service::wire::MAX_WAITING;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PORT: u16 = 80;
const MAC: [u8; 6] = [6, 1, 2, 3, 4, 5];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

/// A guest that speaks TCP properly, and its clock.
struct Client {
    mock: MockClient,
    now: Instant,
}

impl Client {
    fn at(now: Instant) -> Self {
        Self { mock: MockClient::new(GUEST_ADDRESS, (ADDRESS, PORT), now), now }
    }

    fn connect(&mut self) -> MockConnection {
        self.mock.connect()
    }

    fn pass(&mut self, service: &mut TcpService, time: Duration) {
        self.now += time;
        self.mock.settle(service, self.now);
    }

    /// Long enough for delayed acknowledgements.
    fn exchange(&mut self, service: &mut TcpService) {
        for _ in 0..10 {
            self.pass(service, Duration::from_millis(20));
        }
    }
}

/// A request is a line. `N\n` is answered with N bytes, `end\n` ends the connection, and what is too
/// long is refused.
struct Lines;

impl Service for Lines {
    fn answer(&mut self, received: &[u8], full: bool, _now: Instant) -> Exchange {
        let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
            return match full {
                true => Exchange::Reply {
                    consumed: received.len(),
                    bytes: b"too long\n".to_vec(),
                    close: true,
                },
                false => Exchange::Incomplete,
            };
        };
        let line = std::str::from_utf8(&received[..end]).unwrap_or("?");
        let len: usize = line.trim().parse().unwrap_or(0);
        let bytes = (0..len).map(|at| (at % 251) as u8).collect();
        Exchange::Reply { consumed: end + 1, bytes, close: line == "end" }
    }
}

fn service() -> TcpService {
    TcpService::new(ADDRESS, PORT, MAC, Box::new(Lines), Arc::default()).unwrap()
}

fn ask(client: &mut Client, service: &mut TcpService, request: &[u8]) -> Vec<u8> {
    let connection = client.connect();
    client.exchange(service);
    client.mock.send(connection, request);
    client.exchange(service);
    let answer = client.mock.received(connection);
    client.mock.close(connection);
    client.exchange(service);
    answer
}

fn expected(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// The limits of the module, which hold at any time.
fn check_limits(service: &TcpService) {
    assert!(service.connections.len() <= CONNECTIONS + 1);
    assert_eq!(service.connections.len(), service.sockets.iter().count());
    assert_eq!(service.connections.iter().filter(|connection| !connection.is_open()).count(), 1);
    assert!(service.wire.waiting() <= MAX_WAITING);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let open = count(&service.counters.connections_created)
        - count(&service.counters.connections_destroyed);
    assert_eq!(open, service.connections.len() as u64 - 1);
}

fn take(service: &mut TcpService, frame: &[u8], now: Instant) {
    assert!(service.wants(frame));
    service.take(frame, now, &mut Deadline::never());
    check_limits(service);
}

fn give(service: &mut TcpService, now: Instant) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    service.give(&mut frame, now, &mut Deadline::never()).then_some(frame)
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&[0xff; 6], &GUEST_MAC[..], &ARP].concat();
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST_MAC);
    frame.extend(GUEST_ADDRESS.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// An IPv4 packet with a TCP header and no options; checksums are left to the device.
fn tcp(from_port: u16, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&MAC[..], &GUEST_MAC, &IPV4].concat();
    let len = u16::try_from(40 + payload.len()).unwrap();
    frame.extend([0x45, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(GUEST_ADDRESS.octets());
    frame.extend(ADDRESS.octets());
    frame.extend(from_port.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Flags of the TCP segment in a frame.
fn flags(frame: &[u8]) -> u8 {
    frame[14 + 20 + 13]
}

fn sequence(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[38..42].try_into().unwrap())
}

/// Opens a connection manually; returns the service's next sequence number.
fn open(service: &mut TcpService, port: u16, now: Instant) -> u32 {
    take(service, &arp_request(ADDRESS), now);
    take(service, &tcp(port, 0, 0, SYN, &[]), now);
    let answers: Vec<_> = std::iter::from_fn(|| give(service, now)).collect();
    let syn = answers.iter().find(|frame| frame[ETHERTYPE] == IPV4).unwrap();
    assert_eq!(flags(syn), SYN | ACK);
    let next = sequence(syn).wrapping_add(1);
    take(service, &tcp(port, 1, next, ACK, &[]), now);
    next
}

#[test]
fn arp_requests_for_the_address_are_answered_and_others_are_not_wanted() {
    let mut service = service();
    let now = Instant::now();
    take(&mut service, &arp_request(ADDRESS), now);
    let reply = give(&mut service, now).unwrap();
    assert_eq!(reply[..6], GUEST_MAC);
    assert_eq!(reply[6..12], MAC);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[22..28], MAC);
    assert_eq!(reply[28..32], ADDRESS.octets());
    assert_eq!(give(&mut service, now), None);
    assert!(!service.wants(&arp_request(Ipv4Addr::new(169, 254, 169, 253))));
    let mut other = tcp(5000, 0, 0, SYN, &[]);
    other[33] = 1;
    assert!(!service.wants(&other));
    for len in 0..42 {
        assert!(!service.wants(&arp_request(ADDRESS)[..len]), "{len}");
    }
}

#[test]
fn a_guest_that_sends_by_way_of_a_router_is_answered_at_once() {
    let mut service = service();
    let now = Instant::now();
    for later in [0, 3600] {
        let now = now + Duration::from_secs(later);
        let mut syn = tcp(5000, 0, 0, SYN, &[]);
        syn[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        take(&mut service, &syn, now);
        let answer = give(&mut service, now).unwrap();
        assert_eq!((&answer[..6], flags(&answer)), (&GUEST_MAC[..], SYN | ACK));
        assert_eq!(give(&mut service, now), None);
        service.reset();
    }
}

#[test]
fn a_segment_of_64_kib_is_taken_as_far_as_the_window_allows() {
    let mut service = service();
    let now = Instant::now();
    let next = open(&mut service, 5000, now);
    take(&mut service, &tcp(5000, 1, next, ACK, &[b'x'; 65_000]), now);
    let answers: Vec<_> = std::iter::from_fn(|| give(&mut service, now)).collect();
    let answer = answers.iter().find(|frame| frame.len() > 60).unwrap();
    assert!(answer.ends_with(b"too long\n"));
}

#[test]
fn a_request_that_fills_the_buffer_or_is_cut_off_is_refused() {
    let (mut client, mut service) = (Client::at(Instant::now()), service());
    assert_eq!(ask(&mut client, &mut service, &[b'x'; MAX_REQUEST]), b"too long\n");
    let socket = client.connect();
    client.exchange(&mut service);
    client.mock.send(socket, b"half");
    client.mock.close(socket);
    client.exchange(&mut service);
    assert_eq!(client.mock.received(socket), b"too long\n");
    assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
}

#[test]
fn a_connection_that_the_guest_resets_is_forgotten() {
    let mut service = service();
    let now = Instant::now();
    let next = open(&mut service, 5000, now);
    take(&mut service, &tcp(5000, 1, next, ACK, b"100000\n"), now);
    assert_eq!(service.connections.len(), 2);
    take(&mut service, &tcp(5000, 8, next, RST | ACK, &[]), now);
    assert_eq!(service.connections.len(), 1);
    // Before it was established, too.
    take(&mut service, &tcp(5001, 0, 0, SYN, &[]), now);
    take(&mut service, &tcp(5001, 1, 0, RST, &[]), now);
    assert_eq!(service.connections.len(), 1);
    let mut client = Client::at(now);
    client.exchange(&mut service);
    assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
}

#[test]
fn half_open_connections_are_bounded_and_make_room() {
    let (mut client, mut service) = (Client::at(Instant::now()), service());
    client.exchange(&mut service);
    take(&mut service, &arp_request(ADDRESS), client.now);
    for port in 1000..3000 {
        take(&mut service, &tcp(port, 0, 0, SYN, &[]), client.now);
        while give(&mut service, client.now).is_some() {}
    }
    assert!(service.counters.rx_accepted_unusual.load(Ordering::Relaxed) > 1900);
    client.pass(&mut service, GRACE);
    assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
    client.pass(&mut service, PATIENCE);
    client.exchange(&mut service);
    assert_eq!(service.connections.len(), 1);
    check_limits(&service);
}

#[test]
fn idle_connections_are_bounded_and_end() {
    let (mut client, mut service) = (Client::at(Instant::now()), service());
    let idle: Vec<_> = (0..60).map(|_| client.connect()).collect();
    client.exchange(&mut service);
    check_limits(&service);
    let established = |client: &mut Client| {
        idle.iter().filter(|socket| client.mock.is_established(**socket)).count()
    };
    assert!((1..=CONNECTIONS).contains(&established(&mut client)));
    client.pass(&mut service, GRACE);
    assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
    client.pass(&mut service, PATIENCE);
    client.exchange(&mut service);
    assert_eq!(established(&mut client), 0);
    assert_eq!(service.connections.len(), 1);
    // Nothing is left to wait for.
    assert_eq!(service.next_deadline(client.now), None);
}

#[test]
fn a_guest_that_takes_no_frames_costs_a_fixed_number_of_them() {
    let mut service = service();
    let mut now = Instant::now();
    let next = open(&mut service, 5000, now);
    take(&mut service, &tcp(5000, 1, next, ACK, b"1000000\n"), now);
    for _ in 0..200 {
        take(&mut service, &arp_request(ADDRESS), now);
        now += Duration::from_millis(100);
    }
    assert_eq!(service.wire.waiting(), MAX_WAITING);
    assert_eq!(service.next_deadline(now), None, "the guest's next buffer is awaited");
    assert!(service.counters.rx_accepted_err.load(Ordering::Relaxed) > 0);
    // As soon as the guest receives them, the service continues.
    while give(&mut service, now).is_some() {}
    let mut client = Client::at(now);
    client.exchange(&mut service);
    assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
    check_limits(&service);
}

#[test]
fn a_guest_that_never_acknowledges_is_given_up() {
    let mut service = service();
    let mut now = Instant::now();
    let next = open(&mut service, 5000, now);
    take(&mut service, &tcp(5000, 1, next, ACK, b"1000000\n"), now);
    let mut frames = 0;
    while let Some(due) = {
        while give(&mut service, now).is_some() {
            frames += 1;
        }
        service.next_deadline(now)
    } {
        assert!(due > now, "a timer that is always due keeps the thread busy");
        now = due;
    }
    assert!(frames < 200, "{frames} frames");
    assert_eq!(service.connections.len(), 1);
}

#[test]
fn many_requests_at_once_are_answered_in_rounds() {
    let mut service = service();
    let now = Instant::now();
    let next = open(&mut service, 5000, now);
    let requests = b"7\n".repeat(1000);
    let mut deadline = Deadline::of_work(100_000);
    service.take(&tcp(5000, 1, next, ACK, &requests), now, &mut deadline);
    let first = service.counters.tx_count.load(Ordering::Relaxed);
    assert!((1..100).contains(&first), "{first}");
    assert!(deadline.spent() < 120_000, "{}", deadline.spent());
    // The rest follows as far as the guest's window allows.
    while give(&mut service, now).is_some() {}
    let all = service.counters.tx_count.load(Ordering::Relaxed);
    assert_eq!(all, 1000);
}

/// Frames that are nearly right: any field may be any value.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let segment = (1000u16..1004, any::<u32>(), any::<u32>(), any::<u8>(), 0usize..3000);
    let segment = segment.prop_map(|(port, seq, ack, flags, len)| {
        tcp(port, seq % 4000, ack, flags, &vec![b'9'; len])
    });
    let start = prop_oneof![segment, Just(arp_request(ADDRESS))];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (start, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut frame, changes, end, cut)| {
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if cut {
                frame.truncate(end.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any input from a guest, the limits hold, and a valid request is answered afterwards.
    #[test]
    fn any_frames_leave_the_service_in_order(
        frames in prop::collection::vec((frames(), 0u64..2000, any::<bool>()), 0..60),
    ) {
        let mut service = service();
        let mut now = Instant::now();
        for (frame, pause_ms, takes) in frames {
            now += Duration::from_millis(pause_ms);
            if service.wants(&frame) {
                service.take(&frame, now, &mut Deadline::new());
            }
            while takes && give(&mut service, now).is_some() {}
            check_limits(&service);
        }
        let mut client = Client::at(now);
        client.exchange(&mut service);
        client.pass(&mut service, GRACE);
        prop_assert_eq!(ask(&mut client, &mut service, b"4\n"), expected(4));
    }
}
