// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One HTTP request: what a guest asks a metadata service.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::reason;
use crate::console::Answer;

/// `http METHOD ADDRESS PATH [NAME:VALUE]...`: sends a request with these headers; the lines of the
/// whole response.
pub(crate) fn request(method: &str, address: &str, path: &str, headers: &[&str]) -> Answer {
    let mut stream = TcpStream::connect(address).map_err(|e| reason("connect")(&e))?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    text += "\r\n";
    stream.write_all(text.as_bytes()).map_err(|e| reason("sending")(&e))?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).map_err(|e| reason("reading")(&e))?;
    Ok(String::from_utf8_lossy(&response).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn gives_the_lines_of_the_response() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = service.local_addr().unwrap().to_string();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = service.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\none\ntwo").unwrap();
            String::from_utf8(asked).unwrap()
        });
        let lines = request("PUT", &address, "/token", &["X-ttl:60"]).unwrap();
        assert_eq!(lines, ["HTTP/1.1 200 OK", "", "one", "two"]);
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("PUT /token HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nX-ttl:60\r\n"), "{asked}");
    }
}
