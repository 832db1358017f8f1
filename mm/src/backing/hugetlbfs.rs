// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Huge pages reserved by the administrator (hugetlbfs): never split, never collapsed.
//!
//! All pages are reserved at the start, so the guest's first access to a page never fails. A page
//! that is given back must not stay reserved, or no other process could use it. The memory is
//! therefore a file: punching a hole frees the page *and* its reservation, while private memory
//! would keep the reservation.
//!
//! ```text
//! reserved ──touch──▶ present ──discard──▶ given back ──restore──▶ present
//!     └──────────────discard (allocates first)──▲           └─ pool empty: OutOfMemory
//! ```
//!
//! If other processes have emptied the pool, an access to a page that was given back fails, with
//! SIGBUS in this process and with EFAULT in KVM. Such a page must be [restored](Backing::restore)
//! before any access.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::{Backing, BackingError, Discarded, Residency, RunVisitor, cut_ends, mapped_residency};
use crate::sys::mapping::{HugePageSize, Mapping, MappingSource};
use crate::sys::pagemap::Pagemap;
use crate::units::{Bytes, HostRange, usize_from};

/// Guest RAM in huge pages of the host's pool.
#[derive(Debug)]
pub struct Hugetlb {
    mapping: Mapping,
    fd: OwnedFd,
    pagemap: Pagemap,
    page: HugePageSize,
    /// For each page, whether it was given back and has not been restored.
    given_back: Mutex<Vec<bool>>,
}

impl Hugetlb {
    /// Reserves `len` bytes, a multiple of the page size and aligned to it.
    ///
    /// # Errors
    ///
    /// [`BackingError::NoHugePages`] if the pool has too few, or none of that size.
    pub fn new(len: Bytes, page: HugePageSize) -> Result<Self, BackingError> {
        let size = Bytes(page.bytes() as u64);
        let failed = |source| BackingError::NoHugePages { len, page: size, source };
        let bytes = usize_from(len.0);
        if !bytes.is_multiple_of(page.bytes()) {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let kind = match page {
            HugePageSize::TwoMib => MemfdFlags::HUGE_2MB,
            HugePageSize::OneGib => MemfdFlags::HUGE_1GB,
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | kind;
        let fd = rustix::fs::memfd_create(c"ballast-guest-ram", flags)
            .map_err(|error| failed(error.into()))?;
        rustix::fs::ftruncate(&fd, len.0).map_err(|error| failed(error.into()))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|error| failed(error.into()))?;
        let source = MappingSource::SharedHugetlb(fd.as_fd(), page);
        let mapping = Mapping::new(source, bytes, page.bytes()).map_err(failed)?;
        let pagemap = Pagemap::open().map_err(BackingError::Pagemap)?;
        let given_back = Mutex::new(vec![false; bytes / page.bytes()]);
        Ok(Self { mapping, fd, pagemap, page, given_back })
    }

    /// Whole huge pages around `range`.
    fn pages_around(&self, range: HostRange) -> std::ops::Range<usize> {
        let offset = range.addr() - self.mapping.range().addr();
        let end = (offset + range.len()).div_ceil(self.page.bytes());
        offset / self.page.bytes()..end
    }

    /// Whole huge pages inside `range`.
    fn pages_inside(&self, range: HostRange) -> std::ops::Range<usize> {
        let offset = range.addr() - self.mapping.range().addr();
        let start = offset.div_ceil(self.page.bytes());
        start..((offset + range.len()) / self.page.bytes()).max(start)
    }

    /// Where page `nth` lies.
    fn page(&self, nth: usize) -> HostRange {
        let size = self.page.bytes();
        self.mapping.range().slice(nth * size, size).expect("one of the mapping's pages")
    }

    /// Allocates page `nth` of the file, from its reservation if it has one.
    fn allocate(&self, nth: usize) -> io::Result<()> {
        let size = self.page.bytes() as u64;
        loop {
            match rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), nth as u64 * size, size)
            {
                // A signal is pending for this thread; the kernel checks before each page.
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Returns page `nth` to the host; true if that made it free on the host.
    fn give_back(&self, nth: usize, given_back: &mut [bool]) -> io::Result<bool> {
        let page = self.page(nth);
        let present = mapped_residency(&self.pagemap, page).is_ok_and(|r| r.resident > Bytes(0));
        if given_back[nth] && !present {
            return Ok(false);
        }
        if !present {
            // Punching a hole releases the reservation only if the page exists.
            self.allocate(nth)?;
        }
        self.mapping.remove(page)?;
        given_back[nth] = true;
        Ok(true)
    }

    fn given_back(&self) -> MutexGuard<'_, Vec<bool>> {
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for Hugetlb {
    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn discard(&self, ranges: &[HostRange]) -> Result<Discarded, BackingError> {
        let mut done = Discarded::default();
        let mut given_back = self.given_back();
        for &range in ranges {
            done.asked = done.asked.saturating_add(range.bytes());
            for part in cut_ends(range, self.page.bytes()) {
                done.held = done.held.saturating_add(self.residency(part)?.resident);
            }
            for nth in self.pages_inside(range) {
                let range = self.page(nth);
                let failed = |source| BackingError::Advise { what: "discard", range, source };
                if self.give_back(nth, &mut given_back).map_err(failed)? {
                    done.freed = done.freed.saturating_add(range.bytes());
                }
            }
        }
        Ok(done)
    }

    fn discard_unit(&self) -> Bytes {
        Bytes(self.page.bytes() as u64)
    }

    fn refills(&self) -> bool {
        false
    }

    fn restore(&self, range: HostRange) -> Result<Bytes, BackingError> {
        let mut given_back = self.given_back();
        let mut allocated = Bytes(0);
        for nth in self.pages_around(range) {
            if !given_back[nth] {
                continue;
            }
            let page = self.page(nth);
            let failed = |source| BackingError::Advise { what: "allocate", range: page, source };
            self.allocate(nth).map_err(failed)?;
            given_back[nth] = false;
            allocated = allocated.saturating_add(page.bytes());
        }
        Ok(allocated)
    }

    fn populate(&self, range: HostRange) -> Result<(), BackingError> {
        self.restore(range)?;
        let advice = self.mapping.populate(range);
        advice.map_err(|source| BackingError::Advise { what: "populate", range, source })
    }

    fn collapse(&self, _range: HostRange) -> Result<(), BackingError> {
        Ok(())
    }

    fn can_page(&self) -> Result<(), &'static str> {
        Err("hugetlbfs pages stay reserved and would not be free for other uses; use thp or small")
    }

    fn allow_huge(&self, _range: HostRange, _allow: bool) -> Result<(), BackingError> {
        Ok(())
    }

    fn walk(&self, range: HostRange, found: &mut RunVisitor<'_>) -> Result<(), BackingError> {
        self.pagemap.walk(range, found).map_err(BackingError::Pagemap)
    }

    fn residency(&self, range: HostRange) -> Result<Residency, BackingError> {
        let mapped = mapped_residency(&self.pagemap, range)?;
        Ok(Residency { resident: mapped.resident, huge: Some(mapped.resident) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_BYTES, BLOCK_SIZE, PAGE_BYTES};

    /// Tests that count pages of the pool must not run at the same time.
    static POOL: Mutex<()> = Mutex::new(());

    /// HugePages_Free and HugePages_Rsvd.
    fn pool() -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let figure = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (figure("HugePages_Free:"), figure("HugePages_Rsvd:"))
    }

    fn available() -> u64 {
        let (free, reserved) = pool();
        free - reserved
    }

    /// Guest memory of `pages` huge pages of 2 MiB, and the lock that keeps the pool to it.
    fn memory(pages: u64) -> Option<(MutexGuard<'static, ()>, Hugetlb)> {
        let lock = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        match Hugetlb::new(Bytes(pages * BLOCK_SIZE), HugePageSize::TwoMib) {
            Ok(memory) => Some((lock, memory)),
            Err(error) => {
                assert!(available() < pages, "{error}");
                assert!(error.to_string().contains("nr_hugepages"));
                eprintln!("not run: {error}");
                None
            }
        }
    }

    #[test]
    fn parts_of_huge_pages_stay_and_whole_ones_become_available() {
        let Some((_lock, memory)) = memory(2) else { return };
        let all = memory.mapping().range();
        memory.populate(all).unwrap();
        let before = available();
        let from_third_page = all.slice(2 * PAGE_BYTES, all.len() - 2 * PAGE_BYTES).unwrap();
        let done = memory.discard(&[from_third_page]).unwrap();
        assert_eq!(done.freed, Bytes(BLOCK_SIZE));
        assert_eq!(done.held, Bytes(BLOCK_SIZE - 8192));
        assert_eq!(available(), before + 1, "neither in use nor reserved");
    }

    #[test]
    fn discarded_pages_are_available_even_if_they_were_never_touched() {
        let Some((_lock, memory)) = memory(2) else { return };
        let before = available();
        let done = memory.discard(&[memory.mapping().range()]).unwrap();
        assert_eq!(done.freed, Bytes(2 * BLOCK_SIZE));
        assert_eq!(available(), before + 2);
        assert_eq!(memory.discard(&[memory.mapping().range()]).unwrap().freed, Bytes(0));
        assert_eq!(available(), before + 2);
    }

    #[test]
    fn restoring_fails_while_another_process_has_the_page_and_succeeds_afterwards() {
        let Some((_lock, memory)) = memory(2) else { return };
        let all = memory.mapping().range();
        memory.populate(all).unwrap();
        let first = all.slice(0, BLOCK_BYTES).unwrap();
        memory.discard(&[first]).unwrap();
        let others = Hugetlb::new(Bytes(available() * BLOCK_SIZE), HugePageSize::TwoMib).unwrap();
        assert_eq!(available(), 0);
        let page = all.slice(PAGE_BYTES, PAGE_BYTES).unwrap();
        let error = memory.restore(page).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        assert!(memory.populate(first).unwrap_err().is_out_of_memory());
        drop(others);
        assert_eq!(memory.restore(page).unwrap(), Bytes(BLOCK_SIZE));
        assert_eq!(memory.restore(all).unwrap(), Bytes(0), "all of it is there");
        // The page is accessible although the pool is empty again.
        let _others = Hugetlb::new(Bytes(available() * BLOCK_SIZE), HugePageSize::TwoMib);
        memory.mapping().populate(first).unwrap();
        assert_eq!(memory.residency(all).unwrap().resident, Bytes(2 * BLOCK_SIZE));
    }

    #[test]
    fn lengths_are_whole_huge_pages() {
        assert!(Hugetlb::new(Bytes(BLOCK_SIZE), HugePageSize::OneGib).is_err());
        assert!(Hugetlb::new(Bytes(BLOCK_SIZE + 4096), HugePageSize::TwoMib).is_err());
    }
}
