// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains, checked before use.
//!
//! Everything read here was written by the guest. A chain may loop, may be longer than the standard
//! allows, may end in the middle or name memory that is not RAM: [`Segments`] gives a device the
//! valid parts, or the reason to reject the buffer.

use mm::units::usize_from;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::chain::ChainPart;
use super::ram_view::RamView;
use super::{Chain, GuestMemoryMmap};

/// A buffer that a device must not use; the queue itself is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More descriptors than the queue has, so a loop or an oversized indirect table
    /// (virtio 1.3, 2.7.5.3.1).
    #[error("descriptor chain longer than the {limit} entries of the queue")]
    TooLong {
        /// Descriptors that a chain of this queue may have.
        limit: u16,
    },
    /// The last descriptor names a next one that does not exist.
    #[error("descriptor chain ends early after {descriptors} entries")]
    CutOff {
        /// Descriptors that could be read.
        descriptors: usize,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.3, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    OutOfOrder,
    /// A descriptor reaches outside guest RAM.
    #[error("{len} bytes at {addr:#x} are not in guest RAM")]
    OutsideRam {
        /// First guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// A run of guest memory that one descriptor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// The checked contents of one descriptor chain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
}

impl Segments {
    /// Walks `chain`, at most `limit` descriptors, and checks each against the memory's bounds.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain is too long, out of order, or a buffer of it is not in guest RAM.
    pub fn collect(mut chain: Chain, limit: u16) -> Result<Self, ChainError> {
        let segments = Self::walk(&mut chain, limit)?;
        let mem = chain.memory();
        for segment in &segments.readable {
            segment.check(mem, Permissions::Read)?;
        }
        for segment in &segments.writable {
            segment.check(mem, Permissions::Write)?;
        }
        Ok(segments)
    }

    /// As [`collect`](Self::collect), for devices that look at every address themselves: free page
    /// reports are ranges to discard, not memory to read or write.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain is too long, or out of order.
    pub fn collect_unplaced(mut chain: Chain, limit: u16) -> Result<Self, ChainError> {
        Self::walk(&mut chain, limit)
    }

    fn walk(chain: &mut Chain, limit: u16) -> Result<Self, ChainError> {
        let mut segments = Self::default();
        walk(chain, limit, |_, part| {
            let to = if part.writable { &mut segments.writable } else { &mut segments.readable };
            to.push(Segment { addr: part.addr, len: part.len });
            true
        })?;
        Ok(segments)
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Copies readable bytes from `offset` on into `data`; returns how many there were.
    ///
    /// The caller sizes `data` by its own limit, never by a guest-supplied length.
    pub fn read(&self, mem: &GuestMemoryMmap, offset: u64, data: &mut [u8]) -> usize {
        let mut filled = 0;
        for (at, len) in pieces(&self.readable, offset, data.len()) {
            let to = &mut data[filled..filled + len];
            if mem.read_slice(to, at).is_err() {
                break;
            }
            filled += len;
        }
        filled
    }

    /// Copies `data` to the writable bytes from `offset` on; returns how many there was room for.
    pub fn write(&self, mem: &GuestMemoryMmap, offset: u64, data: &[u8]) -> usize {
        let mut written = 0;
        for (at, len) in pieces(&self.writable, offset, data.len()) {
            if mem.write_slice(&data[written..written + len], at).is_err() {
                break;
            }
            written += len;
        }
        written
    }
}

/// Gives each part of `chain`, at most `limit`, to `take`, until that returns false: then it is not in
/// guest RAM.
pub(super) fn walk(
    chain: &mut Chain,
    limit: u16,
    mut take: impl FnMut(&mut RamView, &ChainPart) -> bool,
) -> Result<(), ChainError> {
    let mut seen = 0;
    let mut writable = false;
    let mut more = true;
    while let Some(part) = chain.next_part() {
        if seen == limit {
            return Err(ChainError::TooLong { limit });
        }
        seen += 1;
        more = part.has_next;
        if writable && !part.writable {
            return Err(ChainError::OutOfOrder);
        }
        writable = part.writable;
        if !take(chain.view(), &part) {
            return Err(ChainError::OutsideRam { addr: part.addr.0, len: part.len });
        }
    }
    match more {
        false => Ok(()),
        // A walk stops after as many descriptors as the table has.
        true if seen == limit => Err(ChainError::TooLong { limit }),
        true => Err(ChainError::CutOff { descriptors: seen.into() }),
    }
}

impl Segment {
    fn check(&self, mem: &GuestMemoryMmap, access: Permissions) -> Result<(), ChainError> {
        let outside = ChainError::OutsideRam { addr: self.addr.0, len: self.len };
        if mem.check_range(self.addr, self.len as usize, access) { Ok(()) } else { Err(outside) }
    }
}

/// The contiguous pieces of `segments` that make up `len` bytes from `offset` on.
fn pieces(
    segments: &[Segment],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let size = u64::from(segment.len);
        if left == 0 || skip >= size {
            skip = skip.saturating_sub(size);
            return None;
        }
        let start = std::mem::take(&mut skip);
        let piece = usize_from(size - start).min(left);
        left -= piece;
        Some((GuestAddress(segment.addr.0.checked_add(start)?), piece))
    })
}
