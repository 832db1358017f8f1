// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The server as clients meet it: bytes on a socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::api::instance::InstanceAction;
use crate::api::tests::Responder;
use crate::api::{Action, Phase, Reply};
use crate::host::sockets::Listener;

/// A server on a socket in a folder of its own, in front of a machine that always answers.
struct TestServer {
    path: PathBuf,
    seen: Arc<std::sync::Mutex<Vec<Action>>>,
    _server: Server,
    _dir: tempfile::TempDir,
}

/// What ends the monitor.
fn exit() -> Arc<ExitSignal> {
    Arc::new(ExitSignal::new(|| ()))
}

impl TestServer {
    fn start() -> Self {
        Self::start_in(Phase::Running)
    }

    fn start_in(phase: Phase) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.socket");
        let (door, responder) = Responder::start(phase);
        let socket = Listener::bind(&path).unwrap();
        let service = ApiService::new(door, Default::default(), DEFAULT_MAX_PAYLOAD_BYTES);
        let server = Server::spawn(socket, "api", exit(), service).unwrap();
        Self { path, seen: responder.seen, _server: server, _dir: dir }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Client { stream, left: Vec::new() }
    }
}

/// A minimal HTTP client.
struct Client {
    stream: UnixStream,
    left: Vec<u8>,
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Head and body of the next answer.
    fn answer(&mut self) -> (String, String) {
        let head = loop {
            if let Some(end) = self.left.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.left.split_off(end + 4);
                break String::from_utf8(std::mem::replace(&mut self.left, rest)).unwrap();
            }
            self.read_some();
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |length| length.parse().unwrap());
        while self.left.len() < length {
            self.read_some();
        }
        let rest = self.left.split_off(length);
        (head, String::from_utf8(std::mem::replace(&mut self.left, rest)).unwrap())
    }

    fn read_some(&mut self) {
        let mut buffer = [0; 4096];
        let n = self.stream.read(&mut buffer).unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&self.left));
        self.left.extend(&buffer[..n]);
    }

    /// Status of the next answer.
    fn status(&mut self) -> u16 {
        self.answer().0[9..12].parse().unwrap()
    }

    /// Whether the server has closed, with nothing more to read.
    fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(n) => n == 0 && self.left.is_empty(),
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn put(path: &str, body: &str) -> String {
    let length = body.len();
    format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[test]
fn answers_have_the_headers_that_clients_expect() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(GET);
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in
        ["Server: Firecracker API", "Connection: keep-alive", "Content-Type: application/json"]
    {
        assert!(head.lines().any(|other| other == line), "{line} is not in {head}");
    }
    assert!(body.starts_with(r#"{"app_name":"#), "{body}");

    client.send(put("/actions", r#"{"action_type":"FlushMetrics"}"#));
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    assert!(!head.contains("Content-"), "{head}");
    assert_eq!(body, "");
}

/// As in Firecracker, of refusals too.
#[test]
fn answers_to_what_is_deprecated_say_so() {
    let requests = [
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2"}"#,
            true,
        ),
        ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128}"#, false),
        ("/vsock", r#"{"vsock_id": "v", "guest_cid": 3, "uds_path": "/v"}"#, true),
        ("/vsock", r#"{"guest_cid": 3, "uds_path": "/v"}"#, false),
        ("/mmds/config", r#"{"network_interfaces": ["eth0"]}"#, true),
        ("/mmds/config", r#"{"network_interfaces": ["eth0"], "version": "V2"}"#, false),
    ];
    for (phase, code) in [(Phase::NotStarted, 204), (Phase::Running, 400)] {
        let server = TestServer::start_in(phase);
        let mut client = server.connect();
        for (path, body, deprecated) in requests {
            client.send(put(path, body));
            let (head, _) = client.answer();
            assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {head}");
            let marked = head.to_ascii_lowercase().contains("\r\ndeprecation: true\r\n");
            assert_eq!(marked, deprecated, "{path} {body}: {head}");
        }
    }
}

#[test]
fn requests_may_queue_on_a_connection() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(GET);
    assert_eq!(client.status(), 200);
    let three =
        [GET, &put("/nothing", "{}"), &put("/actions", r#"{"action_type":"SendCtrlAltDel"}"#)];
    client.send(three.concat());
    assert_eq!([client.status(), client.status(), client.status()], [200, 400, 204]);
    assert_eq!(
        *server.seen.lock().unwrap(),
        [InstanceAction::Get, InstanceAction::Get, InstanceAction::SendCtrlAltDel]
            .map(Action::from)
    );
}

#[test]
fn a_connection_ends_when_the_client_asks_for_it() {
    let server = TestServer::start();
    for request in [
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: CLOSE\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(request);
        let (head, _) = client.answer();
        assert!(head.contains(" 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        assert!(client.is_closed());
    }
}

/// As with Firecracker: clients of HTTP/1.0 send their next request on the same connection.
#[test]
fn an_http_1_0_connection_is_kept() {
    let server = TestServer::start();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send("GET /version HTTP/1.0\r\n\r\n");
        let (head, _) = client.answer();
        assert!(head.contains("\r\nConnection: keep-alive\r\n"), "{head}");
    }
}

#[test]
fn a_half_closed_connection_gets_all_its_answers() {
    let server = TestServer::start();
    let mut client = server.connect();
    let request = put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    client.send(request.repeat(50));
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..50 {
        assert_eq!(client.status(), 204);
    }
    assert!(client.is_closed());
    assert_eq!(server.seen.lock().unwrap().len(), 50);
}

#[test]
fn a_body_that_is_too_large_ends_the_connection_and_says_so() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(put("/actions", &" ".repeat(DEFAULT_MAX_PAYLOAD_BYTES + 1)));
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("Connection: close"), "{head}");
    assert!(body.contains("larger than 51200 bytes"), "{body}");
    assert!(client.is_closed());
}

#[test]
fn requests_may_come_byte_by_byte_and_clients_may_disappear() {
    let server = TestServer::start();
    let request = put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    // The server may have closed a connection that is one too many.
    let send_and_go = |part: &[u8]| drop(server.connect().stream.write_all(part));
    // Disconnects after each prefix of a request.
    for end in 0..request.len() {
        send_and_go(&request.as_bytes()[..end]);
    }
    // Disconnects before the response.
    for _ in 0..50 {
        send_and_go(request.as_bytes());
    }
    let mut client = loop {
        // The server may not yet have noticed that the last ten have disconnected.
        let mut client = server.connect();
        // A rejected connection may already be closed.
        if client.stream.write_all(GET.as_bytes()).is_ok() && client.status() == 200 {
            break client;
        }
    };
    for byte in request.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.status(), 204);
}

#[test]
fn the_eleventh_connection_gets_503() {
    let server = TestServer::start();
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.status(), 200);
    }
    let mut late = server.connect();
    let (head, body) = late.answer();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, r#"{ "error": "Too many open connections" }"#);
    assert!(late.is_closed());

    // The others continue, and a freed place can be used.
    clients[3].send(GET);
    assert_eq!(clients[3].status(), 200);
    drop(clients.pop());
    loop {
        let mut next = server.connect();
        // A rejected connection may already be closed.
        if next.stream.write_all(GET.as_bytes()).is_ok() && next.status() == 200 {
            break;
        }
    }
}

#[test]
fn a_stalled_client_holds_up_no_other() {
    let server = TestServer::start();
    let mut stalled = server.connect();
    stalled.send("PUT /actions HTTP/1.1\r\nContent-Length: 30\r\n\r\n{");
    let mut client = server.connect();
    client.send(GET);
    assert_eq!(client.status(), 200);
    stalled.send(&r#"{"action_type":"FlushMetrics"}"#[1..]);
    assert_eq!(stalled.status(), 204);
}

#[test]
fn expect_100_continue() {
    let server = TestServer::start();
    let mut client = server.connect();
    let head = |length| {
        format!("PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    client.send(head(30));
    assert_eq!(client.status(), 100);
    client.send(r#"{"action_type":"FlushMetrics"}"#);
    assert_eq!(client.status(), 204);

    // Refused without being asked to send it, and the connection ends.
    client.send(head(DEFAULT_MAX_PAYLOAD_BYTES + 1));
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(body.contains("larger than"), "{body}");
}

#[test]
fn chunked_bodies_have_the_same_limit() {
    let server = TestServer::start();
    let mut client = server.connect();
    let head = "PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}1e\r\n{}\r\n0\r\n\r\n", r#"{"action_type":"FlushMetrics"}"#));
    assert_eq!(client.status(), 204);

    let mut client = server.connect();
    client.send(head);
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    for _ in 0..7 {
        client.send(&chunk);
    }
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(body.contains("larger than"), "{body}");
}

#[test]
fn bytes_that_are_not_http_are_refused() {
    let server = TestServer::start();
    for garbage in [
        &b"\0\xff\xfe\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        &[b'A'; 100_000],
    ] {
        let mut client = server.connect();
        // The server may close before it has read all of it.
        let _ = client.stream.write_all(garbage);
        let mut answer = Vec::new();
        let end = client.stream.read_to_end(&mut answer).map_err(|error| error.kind());
        assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(*server.seen.lock().unwrap(), []);
}

#[test]
fn a_server_that_stops_gives_the_answers_under_way_and_removes_its_file() {
    use crate::api::channel::channel;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.socket");
    let (door, requests) = channel().unwrap();
    let service = ApiService::new(door, Default::default(), DEFAULT_MAX_PAYLOAD_BYTES);
    let server = Server::spawn(Listener::bind(&path).unwrap(), "api", exit(), service).unwrap();
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Client { stream, left: Vec::new() }
    };
    let (mut idle, mut served, mut owed) = (connect(), connect(), connect());
    served.send(put("/actions", r#"{"action_type":"InstanceStop"}"#));
    let request = requests.wait().unwrap();
    owed.send(GET);
    let never_answered = requests.wait().unwrap();
    idle.send("GET / HT");

    // Shutdown of a machine: the last response is sent, then everything stops immediately.
    request.reply.send(Ok(Reply::Done));
    drop((requests, never_answered));
    server.stop();
    assert!(!path.exists());
    assert_eq!(served.status(), 204);
    assert!(served.is_closed());
    let (head, body) = owed.answer();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(body.contains("does not answer"), "{body}");
    assert!(idle.is_closed(), "half a request is not waited for");
}
