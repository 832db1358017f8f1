// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a region of guest RAM is backed on the host, and how its pages are returned to the host.
//!
//! One file per kind; users of a [`Backing`] never match on the kind.
//!
//! * [`anonymous`]: private memory, of transparent huge pages or of small ones
//! * [`memfd`]: a file in memory, shared with helper processes
//! * [`hugetlbfs`]: huge pages reserved by the administrator
//! * `choice`: creates the requested kind

use std::fmt;
use std::io;

use crate::sys::mapping::Mapping;
pub use crate::sys::memory_refusal::MemoryRefusal;
use crate::sys::pagemap::{MappedAs, Pagemap};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Bytes, HostRange};
pub use choice::BackingKind;

pub mod anonymous;
mod choice;
pub mod hugetlbfs;
pub mod memfd;

/// Error of an operation on the backing.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// Address space or huge pages could not be allocated.
    #[error("cannot map {len} of guest memory: {source}")]
    Map {
        /// Length of the stretch.
        len: Bytes,
        /// What mmap(2) said.
        source: io::Error,
    },
    /// The host has too few free huge pages.
    #[error(
        "cannot reserve {len} in huge pages of {page}: {source}; see HugePages_Free in \
         /proc/meminfo, and reserve more with /sys/kernel/mm/hugepages/*/nr_hugepages"
    )]
    NoHugePages {
        /// Length of the stretch.
        len: Bytes,
        /// Size of one huge page.
        page: Bytes,
        /// What mmap(2) said.
        source: io::Error,
    },
    /// A system call on mapped memory failed.
    #[error("cannot {what} guest memory at {range}: {source}")]
    Advise {
        /// What was tried.
        what: &'static str,
        /// Where.
        range: HostRange,
        /// What the kernel said.
        source: io::Error,
    },
    /// The page map could not be read.
    #[error("cannot read /proc/self/pagemap: {0}")]
    Pagemap(#[source] io::Error),
}

impl BackingError {
    /// The kernel's reason for refusing; `None` for any other error.
    pub fn refusal(&self) -> Option<MemoryRefusal> {
        match self {
            Self::Advise { source, .. } => MemoryRefusal::of(source),
            _ => None,
        }
    }

    /// Whether the host has no free memory of this kind now.
    pub fn is_out_of_memory(&self) -> bool {
        self.refusal() == Some(MemoryRefusal::OutOfMemory)
    }
}

/// Result of a discard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes that the caller named.
    pub asked: Bytes,
    /// Bytes of them that were resident and are now free on the host.
    pub freed: Bytes,
    /// Bytes that the host still holds: parts of huge pages that it cannot split, because of their
    /// kind or because they are pinned.
    pub held: Bytes,
    /// Huge pages that were split to free parts of them.
    pub splits: u64,
}

impl Discarded {
    /// Adds another discard's figures.
    pub fn add(&mut self, other: Self) {
        self.asked = self.asked.saturating_add(other.asked);
        self.freed = self.freed.saturating_add(other.freed);
        self.held = self.held.saturating_add(other.held);
        self.splits = self.splits.saturating_add(other.splits);
    }
}

/// Residency of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Bytes present.
    pub resident: Bytes,
    /// Bytes of them mapped as huge pages; `None` if the kernel cannot tell.
    pub huge: Option<Bytes>,
}

/// Called with a run of resident pages and how it is mapped.
pub type RunVisitor<'a> = dyn FnMut(HostRange, MappedAs) + 'a;

/// One region of guest RAM on the host.
///
/// Every range passed in must lie within [`Backing::mapping`]; a range outside is a caller's bug
/// and panics.
pub trait Backing: Send + Sync + fmt::Debug {
    /// The memory itself.
    fn mapping(&self) -> &Mapping;

    /// Gives the pages of `ranges` (ascending, disjoint) back to the host, so that its free memory
    /// grows; they read as zero afterwards.
    ///
    /// Where a range cuts a huge page, the page is split first: the kernel would otherwise keep
    /// all of it for the part that remains. Pages that the host cannot free keep their contents
    /// or read as zero.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    fn discard(&self, ranges: &[HostRange]) -> Result<Discarded, BackingError>;

    /// The smallest aligned unit that can be returned to the host: a block, or one huge page where
    /// those are larger.
    fn discard_unit(&self) -> Bytes {
        Bytes(BLOCK_SIZE)
    }

    /// Whether the host always finds memory when a discarded page is accessed. If not, a discarded
    /// page must be [restored](Self::restore) before any access.
    fn refills(&self) -> bool {
        true
    }

    /// Makes all of `range` accessible; contents are kept. Returns the bytes allocated.
    ///
    /// # Errors
    ///
    /// [`BackingError::is_out_of_memory`] if the host has too little memory of this kind now. Part
    /// of the range may have been restored.
    fn restore(&self, _range: HostRange) -> Result<Bytes, BackingError> {
        Ok(Bytes(0))
    }

    /// Allocates all of `range` now; contents stay.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    fn populate(&self, range: HostRange) -> Result<(), BackingError> {
        let advice = self.mapping().populate(range);
        advice.map_err(|source| BackingError::Advise { what: "populate", range, source })
    }

    /// Makes each block of `range`, which begins and ends with one, a huge page; contents stay.
    ///
    /// Absent pages are allocated too: never call it on a block with pages that were given back.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    fn collapse(&self, range: HostRange) -> Result<(), BackingError> {
        let advice = self.mapping().collapse(range);
        advice.map_err(|source| BackingError::Advise { what: "collapse", range, source })
    }

    /// Whether blocks of this memory can be parked while in use.
    ///
    /// # Errors
    /// Why not, as the end of a sentence.
    fn can_page(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// Whether memory of this kind can consist of huge pages.
    fn may_be_huge(&self) -> bool {
        true
    }

    /// Allows or forbids huge pages in `range`, whole blocks.
    ///
    /// Forbidden where single pages were given back: the next access, or khugepaged, would fill the
    /// holes again.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    fn allow_huge(&self, range: HostRange, allow: bool) -> Result<(), BackingError>;

    /// Calls `found` for each run of pages that this process has mapped in `range`, in ascending
    /// order.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    fn walk(&self, range: HostRange, found: &mut RunVisitor<'_>) -> Result<(), BackingError>;

    /// Residency of `range`.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    fn residency(&self, range: HostRange) -> Result<Residency, BackingError>;
}

/// Discards ranges one by one, for kinds where one discard does not affect the next.
fn one_by_one(
    ranges: &[HostRange],
    mut discard: impl FnMut(HostRange) -> Result<Discarded, BackingError>,
) -> Result<Discarded, BackingError> {
    let mut total = Discarded::default();
    for &range in ranges {
        total.add(discard(range)?);
    }
    Ok(total)
}

/// What the page table says of `range`.
fn mapped_residency(pagemap: &Pagemap, range: HostRange) -> Result<Residency, BackingError> {
    let (mut resident, mut huge) = (0, 0);
    let each = |run: HostRange, mapped| {
        resident += run.bytes().0;
        if mapped == MappedAs::Huge {
            huge += run.bytes().0;
        }
    };
    pagemap.walk(range, each).map_err(BackingError::Pagemap)?;
    Ok(Residency { resident: Bytes(resident), huge: pagemap.can_scan().then_some(Bytes(huge)) })
}

/// `EINVAL` to advice about page sizes: the kernel has no THP, or this kind is never huge.
fn huge_advice(mapping: &Mapping, range: HostRange, allow: bool) -> Result<(), BackingError> {
    match mapping.set_huge(range, allow) {
        Err(source) if source.raw_os_error() != Some(libc::EINVAL) => {
            Err(BackingError::Advise { what: "set the page size of", range, source })
        }
        _ => Ok(()),
    }
}

/// [`huge_advice`] for a new mapping, as a hint: a kernel that is short of memory for its own
/// tables (`EAGAIN`) may ignore it.
fn first_huge_advice(mapping: &Mapping, allow: bool) -> Result<(), BackingError> {
    match huge_advice(mapping, mapping.range(), allow) {
        Err(BackingError::Advise { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
            tracing::warn!("guest memory keeps the host's default page size: {source}");
            Ok(())
        }
        done => done,
    }
}

/// The parts of `run` at its two ends that are less than `unit`, a power of two: the huge pages
/// there are cut.
fn cut_ends(run: HostRange, unit: usize) -> impl Iterator<Item = HostRange> {
    let first_whole = run.addr().next_multiple_of(unit);
    let last_whole = run.end() - run.end() % unit;
    let (head, tail) = if first_whole > last_whole {
        (Some((run.addr(), run.end())), None)
    } else {
        (Some((run.addr(), first_whole)), Some((last_whole, run.end())))
    };
    [head, tail].into_iter().flatten().filter_map(|(start, end)| HostRange::new(start, end - start))
}

/// The parts of `run` at its two ends that are less than a block.
fn cut_blocks(run: HostRange) -> impl Iterator<Item = HostRange> {
    cut_ends(run, BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_BYTES as PAGE;

    #[test]
    fn ends_of_a_run_are_cut() {
        const BLOCK: usize = BLOCK_BYTES;
        let parts = |addr, len| {
            cut_blocks(HostRange::new(addr, len).unwrap())
                .map(|r| (r.addr(), r.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(BLOCK, 2 * BLOCK), []);
        let both = [(BLOCK - PAGE, PAGE), (2 * BLOCK, 2 * PAGE)];
        assert_eq!(parts(BLOCK - PAGE, BLOCK + 3 * PAGE), both);
        assert_eq!(parts(BLOCK + PAGE, PAGE), [(BLOCK + PAGE, PAGE)]);
        assert_eq!(parts(BLOCK, PAGE), [(BLOCK, PAGE)]);
    }
}
