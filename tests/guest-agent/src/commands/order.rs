// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much memory the kernel itself can obtain in pieces of an order, that is of 2^order pages.
//!
//! There is no knob for this. For order 9 the pool of huge pages is asked to grow. For the others
//! the receive rings of packet sockets are used, whose blocks are allocated by order; where that
//! fails the kernel uses vmalloc instead, which shows in `/proc/vmallocinfo` and ends the attempt.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::reason;
use crate::console::Answer;
use crate::region::PAGE;

/// Pages of 2 MiB.
const HUGE_ORDER: usize = 9;
const HUGE_POOL: &str = "/proc/sys/vm/nr_hugepages";
/// Bytes of a ring: little, so as not to go far beyond the first refusal.
const RING: usize = 1 << 20;
/// Free memory beyond the kernel's reserve at which to stop even if there was no refusal: with
/// less it kills this process instead of refusing.
const MARGIN: usize = 8 << 20;

/// What has been obtained.
#[derive(Default)]
pub(crate) struct Blocks {
    rings: Vec<OwnedFd>,
}

impl Blocks {
    /// `order-fill ORDER`: takes blocks until the kernel has none left; `blocks=`, `bytes=`.
    pub(crate) fn fill(&mut self, order: usize) -> Answer {
        let blocks = match order {
            HUGE_ORDER => fill_huge().map_err(|e| reason(HUGE_POOL)(&e))?,
            1..=8 => self.fill_rings(order).map_err(|e| reason("ring")(&e))?,
            _ => return Err(format!("no way to measure order {order}")),
        };
        Ok(vec![format!("blocks={blocks}"), format!("bytes={}", blocks * (PAGE << order))])
    }

    /// `order-free`: gives all of them back.
    pub(crate) fn free(&mut self) -> Answer {
        self.rings.clear();
        fs::write(HUGE_POOL, "0").map_err(|e| reason(HUGE_POOL)(&e))?;
        Ok(vec![])
    }

    fn fill_rings(&mut self, order: usize) -> io::Result<usize> {
        let refused_before = vmalloc_blocks()?;
        let reserve = (number_in("/proc/sys/vm/min_free_kbytes")? << 10) + MARGIN;
        let mut blocks = 0;
        loop {
            let ring = match ring(order) {
                Ok(ring) => ring,
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Ok(blocks),
                Err(error) => return Err(error),
            };
            let refused = vmalloc_blocks()?.saturating_sub(refused_before);
            self.rings.push(ring);
            blocks += (RING / (PAGE << order)).saturating_sub(refused);
            if refused > 0 || free_memory()? < reserve {
                return Ok(blocks);
            }
        }
    }
}

fn fill_huge() -> io::Result<usize> {
    let before = number_in(HUGE_POOL)?;
    let mut reached = before;
    loop {
        // More than any machine has. The kernel stops at the first refusal, though there may be
        // more once it has compacted: ask until that gives nothing.
        fs::write(HUGE_POOL, (1_u64 << 30).to_string())?;
        let now = number_in(HUGE_POOL)?;
        if now <= reached {
            return Ok(now.saturating_sub(before));
        }
        reached = now;
    }
}

fn number_in(path: &str) -> io::Result<usize> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes that are free, as the kernel counts them.
fn free_memory() -> io::Result<usize> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<usize>().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(kib << 10)
}

/// Blocks of rings that had to be made of single pages.
fn vmalloc_blocks() -> io::Result<usize> {
    let text = fs::read_to_string("/proc/vmallocinfo")?;
    let of_a_ring = |line: &&str| line.contains("packet_set_ring") || line.contains("alloc_pg_vec");
    Ok(text.lines().filter(of_a_ring).count())
}

/// A packet socket with a ring of blocks of that order. It is bound to no interface.
fn ring(order: usize) -> io::Result<OwnedFd> {
    // SAFETY: a system call without addresses.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let size = (PAGE << order) as u32;
    let count = RING as u32 / size;
    let request = libc::tpacket_req {
        tp_block_size: size,
        tp_block_nr: count,
        tp_frame_size: size,
        tp_frame_nr: count,
    };
    // SAFETY: the option takes this struct; it lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_RX_RING,
            std::ptr::from_ref(&request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
