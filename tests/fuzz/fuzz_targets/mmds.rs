// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile guest on the interface that offers metadata: any frames, TCP segments that are nearly
//! right, HTTP that is nearly right, and frames that it does not take.
//!
//! The oracle: queued frames and connections are always bounded; the guest receives Ethernet frames
//! of a valid size; and a valid request is answered afterwards with the right metadata.

#![no_main]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use devices::net::mock::MockClient;
use devices::net::{Responder, TcpService};
use devices::virtio::Deadline;
use libfuzzer_sys::fuzz_target;
use vmm::mmds::{ADDRESS, Http, MAC, Mmds, MmdsRules, PORT};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// Frames that wait for the guest, and connections, at most.
const MAX_WAITING: usize = 64;
const MAX_CONNECTIONS: u64 = 31;
/// Longest frame: 1500 bytes and the Ethernet header.
const MAX_FRAME: usize = 1514;

#[derive(Debug, Arbitrary)]
enum Step {
    /// Any frame.
    Frame(Vec<u8>),
    /// Any ARP packet to the service.
    Arp {
        operation: u8,
        sender: [u8; 10],
    },
    /// A TCP segment on one of a few ports; numbers count from what the service said last.
    Segment {
        port: u8,
        seq: i16,
        ack: i16,
        flags: u8,
        window: u16,
        payload: Vec<u8>,
    },
    /// A regular handshake.
    Open {
        port: u8,
    },
    /// HTTP-like data on an open connection.
    Http {
        port: u8,
        method: u8,
        path: u8,
        headers: Vec<u8>,
        end: bool,
        rest: Vec<u8>,
    },
    /// Takes this many of the frames that wait.
    Take(u8),
    Pass {
        ms: u16,
    },
    Reset,
}

#[derive(Debug, Arbitrary)]
struct Input {
    version_2: bool,
    steps: Vec<Step>,
}

/// A guest that keeps count of its ports' sequence numbers.
struct Guest {
    service: TcpService,
    mmds: Mmds,
    now: Instant,
    /// For each port: the guest's next number, and the service's.
    numbers: [(u32, u32); 256],
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        // As the device does.
        if self.service.wants(&frame[..frame.len().min(60)]) && self.service.wants(frame) {
            let mut deadline = Deadline::new();
            self.service.take(frame, self.now, &mut deadline);
        }
        let counters = self.mmds.tcp_counters();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let open = count(&counters.connections_created) - count(&counters.connections_destroyed);
        assert!(open <= MAX_CONNECTIONS, "{open} connections");
    }

    /// Takes up to `most` frames; how many there were.
    fn take(&mut self, most: usize) -> usize {
        let mut frame = Vec::new();
        for taken in 0..most {
            let mut deadline = Deadline::new();
            if !self.service.give(&mut frame, self.now, &mut deadline) {
                return taken;
            }
            assert!((14..=MAX_FRAME).contains(&frame.len()), "{} bytes", frame.len());
            self.note(&frame);
        }
        most
    }

    /// Keeps the numbers of a TCP segment to the guest.
    fn note(&mut self, frame: &[u8]) {
        if frame.len() < 54 || frame[12..14] != [8, 0] {
            return;
        }
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four"));
        let len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let header = usize::from(frame[46] >> 4) * 4;
        let payload = len.saturating_sub(20 + header);
        let ends = u32::from(frame[47] & 2 != 0) + u32::from(frame[47] & 1 != 0);
        let payload = u32::try_from(payload).expect("a short frame");
        let theirs = number(38).wrapping_add(payload).wrapping_add(ends);
        self.numbers[usize::from(frame[37])] = (number(42), theirs);
    }

    fn segment(&mut self, port: u8, seq: u32, ack: u32, flags: u8, window: u16, payload: &[u8]) {
        let mut frame = [&MAC[..], &GUEST_MAC, &[8, 0, 0x45, 0]].concat();
        let len = u16::try_from(40 + payload.len()).unwrap_or(u16::MAX);
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(GUEST_ADDRESS.octets());
        frame.extend(ADDRESS.octets());
        frame.extend([0x80, port]);
        frame.extend(PORT.to_be_bytes());
        frame.extend(seq.to_be_bytes());
        frame.extend(ack.to_be_bytes());
        frame.extend([0x50, flags]);
        frame.extend(window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        self.send(&frame);
    }

    /// Data behind what was sent before.
    fn data(&mut self, port: u8, payload: &[u8]) {
        let (seq, ack) = self.numbers[usize::from(port)];
        self.segment(port, seq, ack, 0x18, u16::MAX, payload);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Frame(frame) => self.send(&frame),
            Step::Arp { operation, sender } => {
                let mut frame = [&[0xff; 6][..], &GUEST_MAC, &[8, 6]].concat();
                frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
                frame.extend(sender);
                frame.extend([0; 6]);
                frame.extend(ADDRESS.octets());
                self.send(&frame);
            }
            Step::Segment { port, seq, ack, flags, window, payload } => {
                let (ours, theirs) = self.numbers[usize::from(port)];
                let seq = ours.wrapping_add_signed(seq.into());
                let ack = theirs.wrapping_add_signed(ack.into());
                self.segment(port, seq, ack, flags, window, &payload);
            }
            Step::Open { port } => {
                self.segment(port, 0, 0, 2, u16::MAX, &[]);
                self.take(MAX_WAITING);
                self.data(port, &[]);
            }
            Step::Http { port, method, path, headers, end, rest } => {
                let methods = ["GET", "PUT", "POST", "HEAD", "", "G\u{e9}T"];
                let paths = [
                    "/latest/api/token",
                    "/latest/meta-data/",
                    "/latest/user-data",
                    "/",
                    "*",
                    "http://169.254.169.254/latest",
                    "/latest/meta-data/list/0?a=b#c",
                    "/~0~1",
                ];
                let lines = [
                    "X-metadata-token-ttl-seconds: 60\r\n",
                    "X-metadata-token-ttl-seconds: 99999999999\r\n",
                    "X-aws-ec2-metadata-token: 0\r\n",
                    "Accept: application/json\r\n",
                    "Content-Length: 5\r\n",
                    "Content-Length: 18446744073709551615\r\n",
                    "Transfer-Encoding: chunked\r\n",
                    "Connection: close\r\n",
                ];
                let method = methods[usize::from(method) % methods.len()];
                let path = paths[usize::from(path) % paths.len()];
                let mut request = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
                for line in headers.iter().take(40) {
                    request.extend(lines[usize::from(*line) % lines.len()].bytes());
                }
                if end {
                    request.extend(b"\r\n");
                }
                request.extend(rest);
                self.data(port, &request);
            }
            Step::Take(count) => {
                self.take(count.into());
            }
            Step::Pass { ms } => self.now += Duration::from_millis(ms.into()),
            Step::Reset => self.service.reset(),
        }
    }
}

fuzz_target!(|input: Input| {
    let mmds = Mmds::new(51_200);
    let document = serde_json::json!({
        "latest": { "meta-data": { "list": ["x"] }, "user-data": "y".repeat(40_000) },
    });
    mmds.store().put(document).expect("small enough");
    let rules = MmdsRules { tokens_required: input.version_2, always_plain: false };
    let http = Http::new(mmds.clone(), rules);
    let counters = Arc::clone(mmds.tcp_counters());
    let service = TcpService::new(ADDRESS, PORT, MAC, Box::new(http), counters);
    let service = service.expect("random numbers");
    let mut guest = Guest { service, mmds, now: Instant::now(), numbers: [(1, 0); 256] };
    for step in input.steps {
        guest.step(step);
    }
    // Time stands still: what waits, and what follows from it, has an end.
    let waiting = guest.take(10_000);
    assert!(waiting < 10_000, "frames without end");

    // A well-behaved guest on another address: leftovers of the first one must not affect it.
    let Guest { mut service, mut now, .. } = guest;
    now += Duration::from_secs(11);
    let mut client = MockClient::new(Ipv4Addr::new(172, 16, 0, 3), (ADDRESS, PORT), now);
    client.settle(&mut service, now);
    now += Duration::from_secs(1);
    let mut ask = |request: String| {
        let answer = client.exchange(&mut service, request.as_bytes(), now);
        String::from_utf8(answer).expect("text")
    };
    let token =
        ask("PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n".into());
    assert!(token.starts_with("HTTP/1.1 200 OK\r\n"), "{token}");
    let token = token.rsplit("\r\n").next().expect("a body");
    let get = format!("GET /latest/meta-data/list/0 HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    let answer = ask(get);
    assert!(answer.ends_with("\r\n\r\nx"), "{answer}");
});
