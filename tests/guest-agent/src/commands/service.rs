// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small web service: HTTP over vsock, answered from data in memory.

use std::io::{self, Read, Write};

use guest_agent::checksum;

use super::{load, socket};
use crate::console::Answer;
use crate::region::PAGE;

/// Longest head of a request.
const HEAD: usize = 4096;

/// `service-start PORT PATH SIZE START-UP`: from now on, requests to that port are answered from
/// the beginning of a disk or file; `pages=`. While the service starts it needs START-UP of memory
/// on top, which it frees.
///
/// `GET /pages/FIRST/COUNT` reads pages, and answers with their checksum.
pub(super) fn start(port: usize, path: &str, size: usize, start_up: usize) -> Answer {
    let temporary = load::read_direct(path, start_up)?;
    let data = load::read_direct(path, size)?;
    drop(temporary);
    let pages = data.len() / PAGE;
    let listener = socket::listen_vsock(port)?;
    std::thread::spawn(move || {
        while let Some(stream) = socket::accept(&listener) {
            // A client that went away is no reason to stop.
            let _ = serve(&stream, &stream, &data);
        }
    });
    Ok(vec![format!("pages={pages}")])
}

/// Answers one request.
fn serve(mut from: impl Read, mut to: impl Write, data: &[u8]) -> io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 512];
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
        match from.read(&mut part)? {
            0 => return Ok(()),
            read => head.extend_from_slice(&part[..read]),
        }
    }
    let (status, body) = match pages_of(&head, data) {
        Some(pages) => ("200 OK", format!("{:016x}\n", checksum::of_pages(pages))),
        None => ("404 Not Found", "no such pages\n".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    to.write_all(answer.as_bytes())
}

/// The data that a request asks for.
fn pages_of<'a>(head: &[u8], data: &'a [u8]) -> Option<&'a [u8]> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let path = line.strip_prefix("GET /pages/")?.split(' ').next()?;
    let (first, count) = path.split_once('/')?;
    let at = first.parse::<usize>().ok()?.checked_mul(PAGE)?;
    let size = count.parse::<usize>().ok()?.checked_mul(PAGE)?;
    data.get(at..at.checked_add(size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, data: &[u8]) -> String {
        let mut answer = Vec::new();
        let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n");
        serve(request.as_bytes(), &mut answer, data).unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn answers_with_the_sum_of_the_pages() {
        let data: Vec<u8> = (0..4 * PAGE).map(|at| (at / 7) as u8).collect();
        let sum = checksum::of_pages(&data[PAGE..3 * PAGE]);
        let answer = ask("/pages/1/2", &data);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{sum:016x}\n")), "{answer}");
    }

    #[test]
    fn refuses_pages_that_it_does_not_have() {
        let data = vec![0; 4 * PAGE];
        let unknown =
            ["/pages/3/2", "/pages/99999999999999999999/1", "/pages/1", "/other", "/pages/-1/1"];
        for path in unknown {
            assert!(ask(path, &data).starts_with("HTTP/1.1 404 "), "{path}");
        }
        assert!(serve(&b"GET /pages"[..], Vec::new(), &data).is_ok());
    }
}
