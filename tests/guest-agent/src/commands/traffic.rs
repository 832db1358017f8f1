// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Load for measuring devices: requests to a disk at a given depth, streams to the host and answers
//! from there. What it costs to make the load is small and the same under each monitor.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use super::{reason, socket};
use crate::console::Answer;

/// First byte of a stream: what the other side is to do with the rest. Behind this one, eight bytes
/// say how much follows, least significant first.
const SINK: u8 = b'S';
const SOURCE: u8 = b'R';
const ECHO: u8 = b'E';
/// Bytes that are sent or received in one call.
const PIECE: usize = 128 << 10;

/// `traffic-disk DEVICE read|write sequential|random SIZE DEPTH SPAN MILLISECONDS`: requests of SIZE bytes
/// in the first SPAN bytes, past the page cache, DEPTH at a time; `requests=`, `us=`.
pub(crate) fn disk(
    device: &str,
    (direction, order): (&str, &str),
    (size, depth, span): (usize, usize, usize),
    milliseconds: usize,
) -> Answer {
    let write = match direction {
        "read" => false,
        "write" => true,
        other => return Err(format!("{other}: give read or write")),
    };
    let places = match order {
        "sequential" => Places { random: None, next: 0, size, count: span / size },
        "random" => Places { random: Some(0x9e37_79b9), next: 0, size, count: span / size },
        other => return Err(format!("{other}: give sequential or random")),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .map_err(|error| reason("opening")(&error))?;
    let time = Duration::from_millis(milliseconds as u64);
    let (requests, took) =
        requests(&file, write, places, depth, time).map_err(|e| reason("requests")(&e))?;
    Ok(vec![format!("requests={requests}"), format!("us={}", took.as_micros())])
}

/// Where requests go, one after the other.
struct Places {
    /// State of the generator, if they are in no order.
    random: Option<u32>,
    next: usize,
    size: usize,
    count: usize,
}

impl Places {
    fn next(&mut self) -> u64 {
        let index = match &mut self.random {
            Some(state) => {
                // xorshift32
                *state ^= *state << 13;
                *state ^= *state >> 17;
                *state ^= *state << 5;
                *state as usize % self.count
            }
            None => self.next % self.count,
        };
        self.next += 1;
        (index * self.size) as u64
    }
}

/// Keeps `depth` requests in flight until the time is over, and waits for the last.
fn requests(
    file: &File,
    write: bool,
    mut places: Places,
    depth: usize,
    time: Duration,
) -> io::Result<(u64, Duration)> {
    /// What O_DIRECT wants of a buffer's address.
    const ALIGNMENT: usize = 4096;
    let size = places.size;
    let mut memory = vec![0xa5u8; size * depth + ALIGNMENT];
    let offset = memory.as_ptr().align_offset(ALIGNMENT);
    let buffers = &mut memory[offset..offset + size * depth];
    let mut ring = IoUring::new(u32::try_from(depth).map_err(io::Error::other)?)?;
    let target = types::Fd(file.as_raw_fd());
    let length = u32::try_from(size).map_err(io::Error::other)?;
    let base = buffers.as_mut_ptr();
    let mut submit = |ring: &mut IoUring, slot: usize| -> io::Result<()> {
        // Slots are below `depth`, so this stays in the buffers.
        let buffer = base.wrapping_add(slot * size);
        let at = places.next();
        let entry = if write {
            opcode::Write::new(target, buffer, length).offset(at).build()
        } else {
            opcode::Read::new(target, buffer, length).offset(at).build()
        };
        // SAFETY: each slot's buffer is used by one request at a time, and lives until all requests have
        // completed: every path out of here waits for them, or drops the ring, which does.
        unsafe { ring.submission().push(&entry.user_data(slot as u64)) }.map_err(io::Error::other)
    };
    let started = Instant::now();
    for slot in 0..depth {
        submit(&mut ring, slot)?;
    }
    let (mut done, mut under_way) = (0, depth);
    let mut slots = Vec::with_capacity(depth);
    while under_way > 0 {
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            if usize::try_from(completion.result()) != Ok(size) {
                return Err(io::Error::from_raw_os_error(-completion.result().min(0)));
            }
            slots.push(completion.user_data() as usize);
        }
        done += slots.len() as u64;
        under_way -= slots.len();
        for slot in slots.drain(..) {
            if started.elapsed() < time {
                submit(&mut ring, slot)?;
                under_way += 1;
            }
        }
    }
    Ok((done, started.elapsed()))
}

/// `traffic-stream tcp:ADDRESS|vsock:PORT send|receive SIZE`: bytes in one direction; `bytes=`, `us=`.
pub(crate) fn stream(target: &str, direction: &str, bytes: usize) -> Answer {
    let doing = reason("stream");
    let mut stream = connect(target)?;
    let mut piece = vec![0x5au8; PIECE];
    let started = Instant::now();
    let mut moved = 0;
    match direction {
        "send" => {
            // Not by an end of the stream: Firecracker's vsock does not pass on that of one direction.
            let total = bytes.next_multiple_of(PIECE);
            let mut head = vec![SINK];
            head.extend((total as u64).to_le_bytes());
            stream.write_all(&head).map_err(|e| doing(&e))?;
            while moved < total {
                stream.write_all(&piece).map_err(|e| doing(&e))?;
                moved += piece.len();
            }
            // The other side answers when it has all.
            stream.read_exact(&mut [0]).map_err(|e| doing(&e))?;
        }
        "receive" => {
            stream.write_all(&[SOURCE]).map_err(|e| doing(&e))?;
            while moved < bytes {
                match stream.read(&mut piece).map_err(|e| doing(&e))? {
                    0 => return Err("the host ended the stream".into()),
                    count => moved += count,
                }
            }
        }
        other => return Err(format!("{other}: give send or receive")),
    }
    Ok(vec![format!("bytes={moved}"), format!("us={}", started.elapsed().as_micros())])
}

/// `traffic-turns tcp:ADDRESS|vsock:PORT COUNT`: a byte there and back, one after the other; `us=`.
pub(crate) fn round_trips(target: &str, count: usize) -> Answer {
    let doing = reason("round trips");
    let mut stream = connect(target)?;
    stream.write_all(&[ECHO]).map_err(|e| doing(&e))?;
    let started = Instant::now();
    for _ in 0..count {
        stream.write_all(b"x").map_err(|e| doing(&e))?;
        stream.read_exact(&mut [0]).map_err(|e| doing(&e))?;
    }
    Ok(vec![format!("count={count}"), format!("us={}", started.elapsed().as_micros())])
}

fn connect(target: &str) -> Result<File, String> {
    let doing = reason("connecting");
    match target.split_once(':') {
        Some(("tcp", address)) => {
            let stream = TcpStream::connect(address).map_err(|e| doing(&e))?;
            stream.set_nodelay(true).map_err(|e| doing(&e))?;
            Ok(File::from(OwnedFd::from(stream)))
        }
        Some(("vsock", port)) => {
            socket::connect_vsock(port.parse().map_err(|_| format!("{port}: not a port"))?)
        }
        _ => Err(format!("{target}: give tcp:ADDRESS or vsock:PORT")),
    }
}
