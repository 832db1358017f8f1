// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contents of a descriptor chain by their addresses in this process: each is looked up once, which
//! is also the check that it is RAM. For devices that move data; [`Segments`](super::Segments) is
//! the same by guest addresses.

use super::segments::walk;
use super::{Chain, ChainError, IoVecs};

/// The checked contents of one descriptor chain.
#[derive(Debug, Default)]
pub struct ChainMemory {
    /// What the device reads, in order.
    pub readable: IoVecs,
    /// What the device writes, in order.
    pub writable: IoVecs,
}

impl ChainMemory {
    /// Walks `chain`, at most `limit` descriptors, in place of what is here.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain is too long, out of order, or a buffer of it is not in guest RAM.
    pub fn refill(&mut self, mut chain: Chain, limit: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let (readable, writable) = (&mut self.readable, &mut self.writable);
        walk(&mut chain, limit, |view, part| {
            let to = if part.writable { &mut *writable } else { &mut *readable };
            to.push(view, part.addr, part.len)
        })
    }
}
