// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A range of address space that this process owns, and advice to the kernel about it.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::units::{HostRange, PAGE_BYTES};

/// madvise(2): make small pages huge at once. Linux 6.1; in no crate yet.
const MADV_COLLAPSE: libc::c_int = 25;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// What a mapping is mapped from.
#[derive(Clone, Copy, Debug)]
pub enum MappingSource<'fd> {
    /// Private memory of no file.
    Anonymous,
    /// Private memory from the administrator's pool of huge pages (hugetlbfs).
    Hugetlb(HugePageSize),
    /// The file from its beginning, shared with all that map it.
    Shared(BorrowedFd<'fd>),
    /// The same, of a file of huge pages of the pool, all of which are reserved.
    SharedHugetlb(BorrowedFd<'fd>, HugePageSize),
}

/// Sizes of huge pages that x86-64 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    TwoMib,
    /// 1 GiB.
    OneGib,
}

impl HugePageSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::TwoMib => 2 << 20,
            Self::OneGib => 1 << 30,
        }
    }

    fn map_flag(self) -> MapFlags {
        match self {
            Self::TwoMib => MapFlags::HUGE_2MB,
            Self::OneGib => MapFlags::HUGE_1GB,
        }
    }
}

/// Owned address space, readable and writable, whose pages are allocated and freed by advice.
///
/// Pages are allocated on first access. Ordinary memory is not reserved (`MAP_NORESERVE`); huge
/// pages from the pool are, since running out of them later would be fatal. Dropping it unmaps.
#[derive(Debug)]
pub struct Mapping {
    range: HostRange,
}

impl Mapping {
    /// Maps `len` bytes at an address that is a multiple of `align` (a power of two).
    ///
    /// # Errors
    /// Those of mmap(2), and `InvalidInput` if `len` or `align` is not a whole number of the
    /// source's pages.
    pub fn new(source: MappingSource<'_>, len: usize, align: usize) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        if !align.is_power_of_two() || align < PAGE_BYTES {
            return Err(invalid());
        }
        HostRange::new(0, len).ok_or_else(invalid)?;
        match source {
            MappingSource::Hugetlb(page) => Self::hugetlb(page, None, len, align),
            MappingSource::SharedHugetlb(fd, page) => Self::hugetlb(page, Some(fd), len, align),
            MappingSource::Anonymous => {
                let (slack, range) = reserve(len, align, READ_WRITE)?;
                Ok(Self::trimmed(slack, range))
            }
            MappingSource::Shared(fd) => {
                let (slack, range) = reserve(len, align, ProtFlags::empty())?;
                let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
                // SAFETY: replaces part of a reservation that no other code knows.
                let mapped = unsafe {
                    rustix::mm::mmap(range.addr() as *mut _, len, READ_WRITE, flags, fd, 0)
                };
                let whole = Self::trimmed(slack, range);
                if let Err(refused) = mapped {
                    // The kernel may have removed the reservation before it failed, and another
                    // thread may have mapped the place since: it must not be unmapped.
                    std::mem::forget(whole);
                    return Err(refused.into());
                }
                Ok(whole)
            }
        }
    }

    /// Huge pages of the pool, which the kernel aligns to their size by itself.
    fn hugetlb(
        page: HugePageSize,
        file: Option<BorrowedFd<'_>>,
        len: usize,
        align: usize,
    ) -> io::Result<Self> {
        // The kernel would round the length up and map more than requested.
        if !len.is_multiple_of(page.bytes()) || align != page.bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | page.map_flag();
        let addr = match file {
            None => map_anywhere(len, READ_WRITE, flags)?,
            // SAFETY: it touches no mapping that is there.
            Some(fd) => unsafe {
                let anywhere = std::ptr::null_mut();
                rustix::mm::mmap(anywhere, len, READ_WRITE, MapFlags::SHARED, fd, 0)? as usize
            },
        };
        debug_assert!(addr.is_multiple_of(align));
        let range = HostRange::new(addr, len).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { range })
    }

    /// Owns `range` and unmaps the rest of `slack`, a mapping around it.
    fn trimmed(slack: HostRange, range: HostRange) -> Self {
        unmap(slack.addr(), range.addr());
        unmap(range.end(), slack.end());
        Self { range }
    }

    /// Where it lies.
    pub fn range(&self) -> HostRange {
        self.range
    }

    /// Asks for huge pages where they fit (or for small ones only) in `range`.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn set_huge(&self, range: HostRange, huge: bool) -> io::Result<()> {
        self.advise(range, if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage })
    }

    /// Discards the pages of `range`; anonymous memory reads as zero afterwards.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn discard(&self, range: HostRange) -> io::Result<()> {
        self.advise(range, Advice::LinuxDontNeed)
    }

    /// Discards the pages of `range` from the underlying file, and so from all its mappings.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn remove(&self, range: HostRange) -> io::Result<()> {
        self.advise(range, Advice::LinuxRemove)
    }

    /// Allocates all of `range` now, as by writing it, without changing its contents.
    ///
    /// # Errors
    /// Those of madvise(2): `ENOMEM` if memory runs out, `EFAULT` if huge pages of the pool do.
    pub fn populate(&self, range: HostRange) -> io::Result<()> {
        self.advise(range, Advice::LinuxPopulateWrite)
    }

    /// Replaces `range` of private memory by a new mapping, which removes pages, page tables,
    /// advice and registrations.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn renew(&self, range: HostRange) -> io::Result<()> {
        self.assert_owned(range);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let addr = range.addr() as *mut _;
        // SAFETY: `range` lies in this mapping, to whose memory no reference exists (module `sys`).
        unsafe { rustix::mm::mmap_anonymous(addr, range.len(), READ_WRITE, flags) }?;
        Ok(())
    }

    /// Excludes `range` from the memory of child processes.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn dont_fork(&self, range: HostRange) -> io::Result<()> {
        self.advise(range, Advice::LinuxDontFork)
    }

    /// Splits the huge page that `page` belongs to into small pages.
    ///
    /// The kernel splits a huge page when part of it is called cold, and only then frees the parts
    /// that are not mapped; discarding a part merely unmaps it (`madvise_cold_or_pageout_pte_range` in
    /// mm/madvise.c). It does not report whether it succeeded: check afterwards
    /// whether the page is still huge.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn split_huge(&self, page: HostRange) -> io::Result<()> {
        self.advise(page, Advice::LinuxCold)
    }

    /// Makes each 2 MiB-aligned block of `range` one huge page now, allocating what is absent.
    ///
    /// # Errors
    /// `EAGAIN`: a temporary obstacle, try later. `ENOMEM`: no free huge page. `EINVAL`: never
    /// possible here, or a kernel before 6.1.
    pub fn collapse(&self, range: HostRange) -> io::Result<()> {
        self.assert_owned(range);
        // SAFETY: `range` lies in this mapping, and collapsing keeps the contents of its pages.
        let failed =
            unsafe { libc::madvise(range.addr() as *mut libc::c_void, range.len(), MADV_COLLAPSE) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn advise(&self, range: HostRange, advice: Advice) -> io::Result<()> {
        self.assert_owned(range);
        // SAFETY: `range` lies in this mapping, to whose memory no reference exists (module `sys`).
        unsafe { rustix::mm::madvise(range.addr() as *mut _, range.len(), advice) }?;
        Ok(())
    }

    /// Advice on memory outside the mapping is a bug in this crate, not bad input.
    fn assert_owned(&self, range: HostRange) {
        assert!(self.range.covers(&range), "{range} is not in the mapping {}", self.range);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.range.addr(), self.range.end());
    }
}

/// A new mapping of no file, at an address of the kernel's choice.
fn map_anywhere(len: usize, prot: ProtFlags, flags: MapFlags) -> io::Result<usize> {
    // SAFETY: it touches no mapping that is there.
    let addr = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
    Ok(addr as usize)
}

/// Private memory in which `len` bytes are aligned to `align`: all of it, and these bytes. mmap(2)
/// has no alignment argument, so the mapping is larger than needed.
fn reserve(len: usize, align: usize, prot: ProtFlags) -> io::Result<(HostRange, HostRange)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let spare = len.checked_add(align).ok_or_else(invalid)?;
    let addr = map_anywhere(spare, prot, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
    let slack = HostRange::new(addr, spare).ok_or_else(invalid)?;
    let range = HostRange::new(addr.next_multiple_of(align), len).ok_or_else(invalid)?;
    Ok((slack, range))
}

/// Unmaps the bytes from `start` up to `end`, which the caller owns.
fn unmap(start: usize, end: usize) {
    if start == end {
        return;
    }
    // SAFETY: only called on address space that a `Mapping` owns and will not use again.
    let result = unsafe { rustix::mm::munmap(start as *mut _, end - start) };
    debug_assert!(result.is_ok(), "munmap of {start:#x}..{end:#x}: {result:?}");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::units::BLOCK_BYTES;

    #[test]
    fn mappings_are_aligned() {
        for align in [PAGE_BYTES, BLOCK_BYTES, 1 << 30] {
            let map = Mapping::new(MappingSource::Anonymous, 3 * BLOCK_BYTES, align).unwrap();
            assert!(map.range().addr().is_multiple_of(align));
            assert_eq!(map.range().len(), 3 * BLOCK_BYTES);
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let new = |len, align| Mapping::new(MappingSource::Anonymous, len, align);
        assert!(new(0, 4096).is_err());
        assert!(new(4097, 4096).is_err());
        assert!(new(4096, 3 << 12).is_err());
        assert!(new(usize::MAX & !0xfff, 4096).is_err());
    }

    /// A failed mapping must not unmap another thread's memory.
    #[test]
    fn a_refusal_leaves_other_mappings_alone() {
        // More than any host has reserved.
        let too_much = 1 << 40;
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                for _ in 0..2000 {
                    let page = HugePageSize::TwoMib;
                    let refused = Mapping::new(MappingSource::Hugetlb(page), too_much, BLOCK_BYTES);
                    assert!(refused.is_err());
                }
                done.store(true, Ordering::Relaxed);
            });
            // Kept, so that each new one is looked for where there was none before.
            let mut kept = Vec::new();
            while !done.load(Ordering::Relaxed) && kept.len() < 10_000 {
                kept.push(
                    Mapping::new(MappingSource::Anonymous, BLOCK_BYTES, BLOCK_BYTES).unwrap(),
                );
            }
            for map in kept {
                // ENOMEM unless all of it is still mapped.
                map.set_huge(map.range(), false).unwrap();
            }
        });
    }

    #[test]
    #[should_panic(expected = "is not in the mapping")]
    fn advice_stays_inside() {
        let map = Mapping::new(MappingSource::Anonymous, 4096, 4096).unwrap();
        let beyond = HostRange::new(map.range().addr(), 8192).unwrap();
        let _ = map.discard(beyond);
    }
}
