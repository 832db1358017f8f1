// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest pages behind a resource, in the order of the resource's bytes.
//!
//! Kept as runs of consecutive guest addresses in a map by the offset of each run's first byte. A
//! run's length is where the next one starts. A page that moves changes a few entries of the map,
//! however many there are.

use std::collections::{BTreeMap, btree_map};

pub(super) use mm::units::PAGE_SIZE;
use mm::units::{GuestRange, usize_from};
use vm_memory::{GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use super::protocol::MemEntry;
use crate::virtio::{Deadline, GuestMemoryMmap};

/// Bytes of bookkeeping for one run: key, value, and its share of a node of the map that is as
/// empty as nodes become.
pub(super) const RUN_BYTES: u64 = 48;

/// Largest piece of memory that is copied between two looks at the deadline.
const PIECE: u64 = 256 << 10;

/// Why a list of entries is not a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResourceBackingError {
    /// There are no entries, or one has no bytes.
    #[error("a backing needs entries, and an entry needs bytes")]
    Empty,
    /// An entry is not, or not wholly, guest RAM.
    #[error("entry {index} at {addr:#x}, {length} bytes, is not guest RAM")]
    NotRam {
        /// Number of the entry.
        index: u32,
        /// Its guest-physical address.
        addr: u64,
        /// Its length in bytes.
        length: u32,
    },
}

/// CMA regions of the guest, to count backing pages in them.
#[derive(Debug, Clone, Default)]
pub(super) struct CmaRegions(Vec<GuestRange>);

impl CmaRegions {
    pub(super) fn new(regions: Vec<GuestRange>) -> Self {
        Self(regions)
    }

    /// Bytes of `len` from `addr` on that lie in a region.
    fn bytes_in(&self, addr: GuestAddress, len: u64) -> u64 {
        let both = |region: &GuestRange| {
            let start = region.address().0.max(addr.0);
            let end = (region.address().0 + region.bytes().0).min(addr.0 + len);
            end.saturating_sub(start)
        };
        self.0.iter().map(both).sum()
    }
}

/// Bytes of guest RAM, in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResourceBacking {
    /// By offset of the first byte; the first is 0; no two neighbours could be one.
    runs: BTreeMap<u64, GuestAddress>,
    len: u64,
    cma_bytes: u64,
}

impl ResourceBacking {
    /// Adds an entry at the end.
    fn push(&mut self, addr: GuestAddress, length: u64, cma: &CmaRegions) {
        let continues = self
            .runs
            .last_key_value()
            .is_some_and(|(start, last)| last.0.checked_add(self.len - start) == Some(addr.0));
        if !continues {
            self.runs.insert(self.len, addr);
        }
        self.len += length;
        self.cma_bytes += cma.bytes_in(addr, length);
    }

    /// Its runs, to be freed.
    pub(super) fn into_remains(self) -> Remains {
        Remains(self.runs.into_iter())
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Runs of consecutive addresses.
    pub(super) fn runs(&self) -> u64 {
        self.runs.len() as u64
    }

    /// Bytes of it in a CMA region.
    pub(super) fn cma_bytes(&self) -> u64 {
        self.cma_bytes
    }

    /// True when `length` bytes from `offset` on are part of it.
    pub(super) fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.len)
    }

    /// Offset, guest address and length of each run that starts at `offset` or later, in order.
    pub(super) fn runs_from(
        &self,
        offset: u64,
    ) -> impl Iterator<Item = (u64, GuestAddress, u64)> + '_ {
        let mut runs = self.runs.range(offset..).map(|(start, addr)| (*start, *addr)).peekable();
        std::iter::from_fn(move || {
            let (start, addr) = runs.next()?;
            let end = runs.peek().map_or(self.len, |(next, _)| *next);
            Some((start, addr, end - start))
        })
    }

    /// The run that holds `offset`, which is inside: where it starts, and its address.
    fn find(&self, offset: u64) -> Option<(u64, GuestAddress)> {
        self.runs.range(..=offset).next_back().map(|(start, addr)| (*start, *addr))
    }

    /// Calls `f` with pieces of guest memory from `offset` on, in place, in order, until `length`
    /// bytes are done or `deadline` has passed. Returns how many bytes are done: of a length that
    /// is not 0, at least one.
    ///
    /// `None`, and nothing is called, unless the range is inside; `None` too when a piece is not
    /// RAM, which no backing has.
    pub(super) fn for_each<'m>(
        &self,
        mem: &'m GuestMemoryMmap,
        offset: u64,
        length: u64,
        deadline: &mut Deadline,
        mut f: impl FnMut(VolatileSlice<'m>),
    ) -> Option<u64> {
        if !self.holds(offset, length) {
            return None;
        }
        let (mut at, end) = (offset, offset + length);
        if length == 0 {
            return Some(0);
        }
        let (first, _) = self.find(offset)?;
        for (start, addr, run) in self.runs_from(first) {
            let stop = end.min(start + run);
            while at < stop {
                let bytes = (stop - at).min(PIECE);
                let addr = GuestAddress(addr.0 + (at - start));
                let len = usize_from(bytes);
                for slice in mem.get_slices(addr, len, Permissions::Read).ok()? {
                    f(slice.ok()?);
                }
                at += bytes;
                deadline.charge(bytes + Deadline::ENTRY);
                if deadline.passed() {
                    return Some(at - offset);
                }
            }
            if at == end {
                break;
            }
        }
        Some(at - offset)
    }

    /// Copies a range to `out` and charges the work to `deadline`, without stopping at it; false,
    /// with `out` unspecified, if the range is not inside.
    pub(super) fn read(
        &self,
        mem: &GuestMemoryMmap,
        offset: u64,
        out: &mut [u8],
        deadline: &mut Deadline,
    ) -> bool {
        let mut rest = &mut out[..];
        let length = rest.len() as u64;
        let mut whole = Deadline::never();
        let done = self.for_each(mem, offset, length, &mut whole, |slice| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        });
        deadline.charge(whole.spent());
        done == Some(length)
    }

    /// Replaces the page at `offset`, which is inside whole, by the one at `addr`; returns how many
    /// runs it was in.
    pub(super) fn replace_page(
        &mut self,
        offset: u64,
        addr: GuestAddress,
        cma: &CmaRegions,
    ) -> u64 {
        let end = offset + PAGE_SIZE;
        self.split(offset);
        self.split(end);
        let pieces: Vec<(u64, GuestAddress, u64)> =
            self.runs_from(offset).take_while(|(start, ..)| *start < end).collect();
        for (start, old, len) in &pieces {
            self.cma_bytes -= cma.bytes_in(*old, *len);
            self.runs.remove(start);
        }
        self.runs.insert(offset, addr);
        self.cma_bytes += cma.bytes_in(addr, PAGE_SIZE);
        self.join(end);
        self.join(offset);
        pieces.len() as u64
    }

    /// Makes a run start at `offset`, unless that is the end.
    fn split(&mut self, offset: u64) {
        if offset < self.len
            && let Some((start, addr)) = self.find(offset)
            && start < offset
        {
            self.runs.insert(offset, GuestAddress(addr.0 + (offset - start)));
        }
    }

    /// Makes one of the run at `offset` and the one before it where they are consecutive.
    fn join(&mut self, offset: u64) {
        if let Some(addr) = self.runs.get(&offset)
            && let Some((start, before)) = self.runs.range(..offset).next_back()
            && before.0.checked_add(offset - start) == Some(addr.0)
        {
            self.runs.remove(&offset);
        }
    }
}

/// A backing that is being freed, some runs at a time.
pub(super) struct Remains(btree_map::IntoIter<u64, GuestAddress>);

impl Remains {
    /// Frees `most` runs, or those that are left; returns how many.
    pub(super) fn free(&mut self, most: usize) -> usize {
        self.0.by_ref().take(most).count()
    }
}

/// A backing under construction, one entry at a time.
#[derive(Debug, Default)]
pub(super) struct Builder {
    backing: ResourceBacking,
    entries: u32,
    /// An entry begins or ends inside a page.
    ragged: bool,
}

impl Builder {
    /// Adds `entry`, which must be RAM of `mem`.
    pub(super) fn push(
        &mut self,
        mem: &GuestMemoryMmap,
        entry: &MemEntry,
        cma: &CmaRegions,
    ) -> Result<(), ResourceBackingError> {
        let (addr, length) = (entry.addr.get(), entry.length.get());
        if length == 0 {
            return Err(ResourceBackingError::Empty);
        }
        if !is_ram(mem, GuestAddress(addr), u64::from(length)) {
            return Err(ResourceBackingError::NotRam { index: self.entries, addr, length });
        }
        self.backing.push(GuestAddress(addr), u64::from(length), cma);
        self.entries += 1;
        self.ragged |= addr % PAGE_SIZE != 0 || u64::from(length) % PAGE_SIZE != 0;
        Ok(())
    }

    /// Upper bound on the runs of the backing after any migrations: at most one per page, and one
    /// per entry that does not start at a page.
    pub(super) fn worst_runs(&self) -> u64 {
        let pages = self.backing.len.div_ceil(PAGE_SIZE);
        if self.ragged { pages + u64::from(self.entries) } else { pages }
    }

    /// Refuses a backing without entries.
    pub(super) fn check(&self) -> Result<(), ResourceBackingError> {
        if self.backing.runs.is_empty() { Err(ResourceBackingError::Empty) } else { Ok(()) }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.backing.len
    }

    /// The backing.
    pub(super) fn into_backing(self) -> ResourceBacking {
        self.backing
    }
}

#[cfg(any(test, feature = "test-utils"))]
impl ResourceBacking {
    /// Recounts; panics where a sum is off.
    pub(super) fn validate(&self, cma: &CmaRegions) {
        let total: u64 = self.runs_from(0).map(|(_, _, len)| len).sum();
        let in_cma: u64 = self.runs_from(0).map(|(_, addr, len)| cma.bytes_in(addr, len)).sum();
        assert_eq!((total, in_cma), (self.len, self.cma_bytes), "runs of a backing");
    }
}

#[cfg(test)]
impl ResourceBacking {
    /// The backing that `entries` describe, and the most runs that it can have.
    pub(super) fn of(
        mem: &GuestMemoryMmap,
        entries: &[MemEntry],
        cma: &CmaRegions,
    ) -> Result<(Self, u64), ResourceBackingError> {
        let mut builder = Builder::default();
        entries.iter().try_for_each(|entry| builder.push(mem, entry, cma))?;
        builder.check()?;
        let worst = builder.worst_runs();
        Ok((builder.into_backing(), worst))
    }
}

/// True when `length` bytes from `addr` on are guest RAM.
pub(super) fn is_ram(mem: &GuestMemoryMmap, addr: GuestAddress, length: u64) -> bool {
    addr.0.checked_add(length).is_some()
        && mem.check_range(addr, usize_from(length), Permissions::ReadWrite)
}
