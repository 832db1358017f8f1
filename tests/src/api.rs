// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HTTP/1.1 over a Unix socket, as little as a client of a monitor needs.

use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::{Error, Result};

/// Timeout of an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// A monitor's API socket. Each request uses a new connection.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    limit: Duration,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The words of an error body, if it is one.
    #[must_use]
    pub fn fault_message(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("fault_message")?.as_str()?.to_owned())
    }
}

impl Api {
    /// The API that listens, or will listen, at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), limit: LIMIT }
    }

    /// The same with another timeout of an answer.
    #[must_use]
    pub fn with_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET, expecting 200 and JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let response = self.expect("GET", path, None)?;
        serde_json::from_slice(&response.body).map_err(|e| {
            Error::Check(format!("GET {path} gave no JSON ({e}): {}", response.text()))
        })
    }

    /// PUT, expecting success.
    pub fn put(&self, path: &str, body: &Value) -> Result<Response> {
        self.expect("PUT", path, Some(body))
    }

    /// PATCH, expecting success.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Response> {
        self.expect("PATCH", path, Some(body))
    }

    fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response> {
        let response = self.request(method, path, body.map(Value::to_string).as_deref())?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let request = format!("{method} {path}");
        Err(Error::Api { request, status: response.status, body: response.text() })
    }

    /// Sends any request with any body; returns the answer with any status.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Result<Response> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        if let Some(body) = body {
            request += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        } else {
            request += "\r\n";
        }
        let mut stream = self.connect()?;
        let doing = format!("{method} {path}");
        match stream.write_all(request.as_bytes()) {
            // A body that is too long is answered before it has been read, and then no more of it.
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {}
            written => written.map_err(Error::io(&doing))?,
        }
        read_response(stream).map_err(Error::io(&doing))
    }

    /// A raw connection, for misbehaving clients.
    pub fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(Error::io(format!("connecting to {}", self.socket.display())))?;
        stream.set_read_timeout(Some(self.limit)).map_err(Error::io("setting a time limit"))?;
        stream.set_write_timeout(Some(LIMIT)).map_err(Error::io("setting a time limit"))?;
        Ok(stream)
    }
}

/// Reads one answer.
pub fn read_response(stream: UnixStream) -> std::io::Result<Response> {
    let invalid = || std::io::Error::other("not an HTTP answer");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.trim().parse().ok());
    let status = status.ok_or_else(invalid)?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(invalid());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(Ok(0), |(_, value)| value.parse().map_err(|_| invalid()))?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Response { status, headers, body })
}
