// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metadata service as a guest meets it: frame by frame.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::net::mock::MockClient;
use devices::net::{MAX_REQUEST, TcpService};
use serde_json::{Value, json};

use super::*;

struct Guest {
    mmds: Mmds,
    service: TcpService,
    client: MockClient,
    now: Instant,
}

impl Guest {
    fn new(tokens_required: bool) -> Self {
        let mmds = Mmds::new(DEFAULT_LIMIT);
        let document = json!({"latest": {"meta-data": {"ami-id": "ami-1", "size": 3}}});
        mmds.store().put(document).unwrap();
        let http = Http::new(mmds.clone(), MmdsRules { tokens_required, always_plain: false });
        let counters = Arc::clone(mmds.tcp_counters());
        let service = TcpService::new(ADDRESS, PORT, MAC, Box::new(http), counters).unwrap();
        let now = Instant::now();
        let client = MockClient::new(Ipv4Addr::new(172, 16, 0, 2), (ADDRESS, PORT), now);
        Self { mmds, service, client, now }
    }

    /// Status and body of the reply to `request`, on a new connection.
    fn ask(&mut self, request: &str) -> (String, String) {
        let reply = self.client.exchange(&mut self.service, request.as_bytes(), self.now);
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }

    fn get(&mut self, path: &str, headers: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n"))
    }

    fn token(&mut self, ttl_s: u32) -> String {
        let (status, token) = self.ask(&format!(
            "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: {ttl_s}\r\n\r\n"
        ));
        assert_eq!(status, "200", "{token}");
        token
    }
}

fn ok(body: &str) -> (String, String) {
    ("200".into(), body.into())
}

#[test]
fn version_1_is_read_without_a_token() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.get("/latest/meta-data/ami-id", ""), ok("ami-1"));
    assert_eq!(guest.get("/latest/meta-data/", ""), ok("ami-id\nsize"));
    let (_, text) = guest.get("/latest", "Accept: application/json\r\n");
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({"meta-data": {"ami-id": "ami-1", "size": 3}})
    );
    assert_eq!(guest.get("/nothing", "").0, "404");
    // The next request sees the host's changes.
    let patch = json!({"latest": {"meta-data": {"ami-id": "ami-2"}}});
    guest.mmds.store().patch(&patch).unwrap();
    assert_eq!(guest.get("/latest/meta-data/ami-id", ""), ok("ami-2"));
}

#[test]
fn version_2_is_read_with_a_token_until_it_expires() {
    let mut guest = Guest::new(true);
    assert_eq!(guest.get("/latest", "").0, "401");
    let token = guest.token(60);
    let header = format!("X-metadata-token: {token}\r\n");
    assert_eq!(guest.get("/latest/meta-data/ami-id", &header), ok("ami-1"));
    guest.now += Duration::from_secs(59);
    assert_eq!(guest.get("/latest/meta-data/ami-id", &header), ok("ami-1"));
    guest.now += Duration::from_secs(1);
    assert_eq!(guest.get("/latest/meta-data/ami-id", &header).0, "401");
    let counters = guest.mmds.token_counters();
    assert_eq!(counters.rx_no_token.load(Ordering::Relaxed), 1);
    assert_eq!(counters.rx_invalid_token.load(Ordering::Relaxed), 1);
}

#[test]
fn a_token_is_valid_on_every_interface() {
    let mut guest = Guest::new(true);
    let header = format!("X-aws-ec2-metadata-token: {}\r\n", guest.token(60));
    let http =
        Http::new(guest.mmds.clone(), MmdsRules { tokens_required: true, always_plain: false });
    let counters = Arc::clone(guest.mmds.tcp_counters());
    guest.service = TcpService::new(ADDRESS, PORT, MAC, Box::new(http), counters).unwrap();
    assert_eq!(guest.get("/latest/meta-data/ami-id", &header), ok("ami-1"));
}

#[test]
fn a_document_larger_than_any_buffer_arrives_whole() {
    let mut guest = Guest::new(false);
    let long = "x".repeat(DEFAULT_LIMIT - 20);
    guest.mmds.store().put(json!({ "a": long })).unwrap();
    let (status, body) = guest.get("/a", "");
    assert_eq!((status.as_str(), body.len()), ("200", long.len()));
}

#[test]
fn requests_that_are_not_http_get_an_error_and_others_go_on() {
    let mut guest = Guest::new(false);
    for garbage in [
        "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".to_owned(),
        "\0\0\0\0".to_owned(),
        format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_REQUEST)),
        format!("GET / HTTP/1.1\r\nX: {}\r\n", "x".repeat(MAX_REQUEST)),
    ] {
        assert_eq!(guest.ask(&garbage).0, "400", "{:?}", &garbage[..4]);
        assert_eq!(guest.get("/latest/meta-data/ami-id", ""), ok("ami-1"));
    }
}
