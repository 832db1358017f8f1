// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest pages behind a resource, in the order of the resource's bytes.
//!
//! Kept as runs of consecutive guest addresses. A run's length is where the next one starts, so
//! that a wholly scattered buffer costs 16 bytes a page and a contiguous one 16 bytes in all.

pub(super) use mm::units::PAGE_SIZE;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use super::protocol::MemEntry;
use crate::virtio::GuestMemory;

/// Why a list of entries is not a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackingError {
    /// There are no entries, or one has no bytes.
    #[error("a backing needs entries, and an entry needs bytes")]
    Empty,
    /// An entry is not, or not wholly, guest RAM.
    #[error("entry {index} at {addr:#x}, {length} bytes, is not guest RAM")]
    NotRam {
        /// Number of the entry.
        index: usize,
        /// Its guest-physical address.
        addr: u64,
        /// Its length in bytes.
        length: u32,
    },
}

/// Consecutive guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Offset in the backing of its first byte.
    start: u64,
    addr: GuestAddress,
}

/// Bytes of guest RAM, in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// Sorted by `start`; the first starts at 0; no two neighbours could be one.
    runs: Vec<Run>,
    len: u64,
}

impl Backing {
    /// The backing that `entries` describe; all of it is RAM of `mem`.
    pub(super) fn new(mem: &GuestMemory, entries: &[MemEntry]) -> Result<Self, BackingError> {
        let mut backing = Self { runs: Vec::with_capacity(entries.len()), len: 0 };
        for (index, entry) in entries.iter().enumerate() {
            let (addr, length) = (entry.addr.get(), entry.length.get());
            if length == 0 {
                return Err(BackingError::Empty);
            }
            if !is_ram(mem, GuestAddress(addr), u64::from(length)) {
                return Err(BackingError::NotRam { index, addr, length });
            }
            backing.push(GuestAddress(addr), u64::from(length));
        }
        if backing.runs.is_empty() {
            return Err(BackingError::Empty);
        }
        backing.runs.shrink_to_fit();
        Ok(backing)
    }

    fn push(&mut self, addr: GuestAddress, length: u64) {
        let run = Run { start: self.len, addr };
        if !self.runs.last().is_some_and(|last| continues(last, &run)) {
            self.runs.push(run);
        }
        self.len += length;
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Pieces that it is in.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Most runs that a backing made of `entries` entries and `len` bytes can ever have, however
    /// its pages move: each entry and each page begins at most one.
    pub(super) fn worst_runs(entries: usize, len: u64) -> u64 {
        (entries as u64).saturating_add(len.div_ceil(PAGE_SIZE))
    }

    /// True when `length` bytes from `offset` on are part of it.
    pub(super) fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.len)
    }

    /// Guest addresses and lengths of the runs, in order.
    pub(super) fn extents(&self) -> impl Iterator<Item = (GuestAddress, u64)> + '_ {
        self.runs.iter().enumerate().map(|(i, run)| (run.addr, self.end_of(i) - run.start))
    }

    fn end_of(&self, index: usize) -> u64 {
        self.runs.get(index + 1).map_or(self.len, |next| next.start)
    }

    /// Index of the run that holds `offset`, which is inside.
    fn find(&self, offset: u64) -> usize {
        self.runs.partition_point(|run| run.start <= offset) - 1
    }

    /// Calls `f` with each piece of guest memory of a range, in place, in order.
    ///
    /// Nothing is called unless the range is inside; false then, or when guest memory has changed
    /// under the backing.
    pub(super) fn for_each<'m>(
        &self,
        mem: &'m GuestMemory,
        offset: u64,
        length: usize,
        mut f: impl FnMut(VolatileSlice<'m>),
    ) -> bool {
        if !self.holds(offset, length as u64) {
            return false;
        }
        let (mut at, end) = (offset, offset + length as u64);
        let mut index = if length == 0 { 0 } else { self.find(offset) };
        while at < end {
            let run = self.runs[index];
            let stop = self.end_of(index).min(end);
            let Ok(bytes) = usize::try_from(stop - at) else { return false };
            let addr = GuestAddress(run.addr.0 + (at - run.start));
            let Ok(slices) = mem.get_slices(addr, bytes, Permissions::Read) else { return false };
            for slice in slices {
                let Ok(slice) = slice else { return false };
                f(slice);
            }
            (at, index) = (stop, index + 1);
        }
        true
    }

    /// Copies a range out; false, and `out` unspecified, when it is not inside.
    pub(super) fn read(&self, mem: &GuestMemory, offset: u64, out: &mut [u8]) -> bool {
        let mut rest = &mut out[..];
        let length = rest.len();
        self.for_each(mem, offset, length, |slice| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        })
    }

    /// Replaces the page at `offset`, which is inside whole, by the one at `addr`.
    pub(super) fn replace_page(&mut self, offset: u64, addr: GuestAddress) {
        let first = self.split(offset);
        let behind = self.split(offset + PAGE_SIZE);
        self.runs.splice(first..behind, [Run { start: offset, addr }]);
        self.join(first + 1);
        self.join(first);
    }

    /// Makes a run start at `offset`; its index. At the very end: the number of runs.
    fn split(&mut self, offset: u64) -> usize {
        if offset == self.len {
            return self.runs.len();
        }
        let index = self.find(offset);
        let run = self.runs[index];
        if run.start == offset {
            return index;
        }
        let addr = GuestAddress(run.addr.0 + (offset - run.start));
        self.runs.insert(index + 1, Run { start: offset, addr });
        index + 1
    }

    /// Makes one of run `index` and the one before it where they are consecutive.
    fn join(&mut self, index: usize) {
        if let (Some(before), Some(run)) =
            (index.checked_sub(1).and_then(|i| self.runs.get(i)), self.runs.get(index))
            && continues(before, run)
        {
            self.runs.remove(index);
        }
    }
}

/// True when `run`, the next one, goes on where `before` ends.
fn continues(before: &Run, run: &Run) -> bool {
    before.addr.0.checked_add(run.start - before.start) == Some(run.addr.0)
}

/// True when `length` bytes from `addr` on are guest RAM.
pub(super) fn is_ram(mem: &GuestMemory, addr: GuestAddress, length: u64) -> bool {
    usize::try_from(length).is_ok_and(|length| {
        addr.0.checked_add(length as u64).is_some()
            && mem.check_range(addr, length, Permissions::ReadWrite)
    })
}
