// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of the web service in a guest (`service-start` of the agent), by the vsock's Unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_agent::checksum;

use crate::api::read_response;
use crate::host::PAGE;
use crate::{Error, Result};

/// Where the service listens.
pub const PORT: u32 = 80;

/// Some of a service's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Part {
    /// What the service should answer if `data` is what it has.
    #[must_use]
    pub fn sum(self, data: &[u8]) -> Option<u64> {
        let page = PAGE as usize;
        let part = data.get(self.first * page..(self.first + self.count) * page)?;
        Some(checksum::of_pages(part))
    }
}

/// A guest's service.
#[derive(Debug, Clone)]
pub struct Service {
    socket: PathBuf,
}

impl Service {
    /// The service of the guest whose vsock has its Unix socket at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for the checksum of `part`; gives that, and the time from connecting to the answer. Fails
    /// if nothing comes for `limit`.
    pub fn ask(&self, part: Part, limit: Duration) -> Result<(u64, Duration)> {
        let path = format!("/pages/{}/{}", part.first, part.count);
        let doing = || Error::io(format!("GET {path} from {}", self.socket.display()));
        let began = Instant::now();
        let mut stream = UnixStream::connect(&self.socket).map_err(doing())?;
        stream.set_read_timeout(Some(limit)).map_err(doing())?;
        stream.set_write_timeout(Some(limit)).map_err(doing())?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).map_err(doing())?;
        let greeting = greeting(&mut stream).map_err(doing())?;
        crate::check!(greeting.starts_with("OK "), "vsock: {greeting:?}");
        let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(doing())?;
        let response = read_response(stream).map_err(doing())?;
        let took = began.elapsed();
        let text = response.text();
        crate::check!(response.status == 200, "GET {path}: {} {text}", response.status);
        let sum = u64::from_str_radix(text.trim(), 16);
        let sum = sum.map_err(|_| Error::Check(format!("GET {path}: no checksum: {text:?}")))?;
        Ok((sum, took))
    }
}

/// The monitor's line, and nothing of what follows it.
fn greeting(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') && line.len() < 64 {
        stream.read_exact(&mut byte)?;
        line.push(char::from(byte[0]));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn asks_and_takes_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let data: Vec<u8> = (0..3 * PAGE).map(|at| (at / 5) as u8).collect();
        let part = Part { first: 1, count: 2 };
        let expected = part.sum(&data).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_eq!(greeting(&mut stream).unwrap(), "CONNECT 80\n");
            stream.write_all(b"OK 1024\n").unwrap();
            let mut asked = [0; 18];
            stream.read_exact(&mut asked).unwrap();
            let body = format!("{expected:016x}\n");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
            asked
        });
        let (sum, _) = Service::new(&socket).ask(part, Duration::from_secs(10)).unwrap();
        assert_eq!(sum, expected);
        assert_eq!(&served.join().unwrap(), b"GET /pages/1/2 HTT");
        assert_eq!(Part { first: 2, count: 2 }.sum(&data), None);
    }
}
