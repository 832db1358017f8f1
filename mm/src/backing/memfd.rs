// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file in memory, mapped shared, so that helper processes (vhost-user devices) can map it too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};

use super::{
    Backing, BackingError, Discarded, Residency, RunVisitor, first_huge_advice, huge_advice,
    mapped_residency, one_by_one,
};
use crate::sys::mapping::{Mapping, MappingSource};
use crate::sys::pagemap::Pagemap;
use crate::units::{BLOCK_BYTES, Bytes, HostRange, usize_from};

/// Guest RAM in a memfd.
///
/// MADV_DONTNEED would only unmap pages in this process and free nothing, as they belong to the
/// file. A page is resident if the file holds it, whichever process accessed it.
#[derive(Debug)]
pub struct Memfd {
    mapping: Mapping,
    fd: OwnedFd,
    pagemap: Pagemap,
}

impl Memfd {
    /// Makes a file of `len` bytes and maps it, aligned to 2 MiB.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    pub fn new(len: Bytes) -> Result<Self, BackingError> {
        let failed = |source| BackingError::Map { len, source };
        let size = usize_from(len.0);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd =
            rustix::fs::memfd_create(c"ballast-guest-ram", flags).map_err(|e| failed(e.into()))?;
        rustix::fs::ftruncate(&fd, len.0).map_err(|e| failed(e.into()))?;
        // Seal the size: a process that receives the file must not be able to truncate guest
        // memory.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|e| failed(e.into()))?;
        let mapping =
            Mapping::new(MappingSource::Shared(fd.as_fd()), size, BLOCK_BYTES).map_err(failed)?;
        first_huge_advice(&mapping, true)?;
        Ok(Self { mapping, fd, pagemap: Pagemap::open().map_err(BackingError::Pagemap)? })
    }

    /// The file, for processes that share the memory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of `range` that the file holds pages for.
    fn held_by_file(&self, range: HostRange) -> io::Result<Bytes> {
        let base = self.mapping.range().addr();
        let (mut at, end) = ((range.addr() - base) as u64, (range.end() - base) as u64);
        let mut held = 0;
        while at < end {
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) if data < end => data,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let hole = rustix::fs::seek(&self.fd, SeekFrom::Hole(data))?.min(end);
            held += hole - data;
            at = hole;
        }
        Ok(Bytes(held))
    }
}

impl Backing for Memfd {
    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn discard(&self, ranges: &[HostRange]) -> Result<Discarded, BackingError> {
        one_by_one(ranges, |range| {
            let failed = |source| BackingError::Advise { what: "discard", range, source };
            let before = self.held_by_file(range).map_err(failed)?;
            self.mapping.remove(range).map_err(failed)?;
            // A huge page that the kernel could not split is only zeroed; the file still holds it.
            let after = self.held_by_file(range).map_err(failed)?;
            let freed = before.saturating_sub(after);
            Ok(Discarded { asked: range.bytes(), freed, held: after, splits: 0 })
        })
    }

    fn can_page(&self) -> Result<(), &'static str> {
        Err("memfd pages belong to a file that other processes may map; use thp or small")
    }

    fn allow_huge(&self, range: HostRange, allow: bool) -> Result<(), BackingError> {
        huge_advice(&self.mapping, range, allow)
    }

    fn walk(&self, range: HostRange, found: &mut RunVisitor<'_>) -> Result<(), BackingError> {
        self.pagemap.walk(range, found).map_err(BackingError::Pagemap)
    }

    fn residency(&self, range: HostRange) -> Result<Residency, BackingError> {
        let mapped = mapped_residency(&self.pagemap, range)?;
        let what = "look at";
        let resident = self.held_by_file(range).map_err(|source| BackingError::Advise {
            what,
            range,
            source,
        })?;
        Ok(Residency { resident, huge: mapped.huge })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_SIZE, PAGE_BYTES};

    fn part(b: &Memfd, page: usize, pages: usize) -> HostRange {
        b.mapping().range().slice(page * PAGE_BYTES, pages * PAGE_BYTES).unwrap()
    }

    #[test]
    fn discarding_shrinks_the_file() {
        let b = Memfd::new(Bytes(4 * BLOCK_SIZE)).unwrap();
        b.populate(part(&b, 0, 100)).unwrap();
        let blocks = || rustix::fs::fstat(b.fd()).unwrap().st_blocks * 512;
        let before = blocks();
        let done = b.discard(&[part(&b, 10, 5), part(&b, 90, 4)]).unwrap();
        assert_eq!((done.asked, done.freed), (Bytes(9 << 12), Bytes(9 << 12)));
        assert_eq!(before - blocks(), 9 << 12);
    }

    #[test]
    fn length_of_the_file_cannot_be_changed() {
        let b = Memfd::new(Bytes(BLOCK_SIZE)).unwrap();
        for len in [0, 2 * BLOCK_SIZE] {
            assert_eq!(rustix::fs::ftruncate(b.fd(), len), Err(rustix::io::Errno::PERM));
        }
    }

    #[test]
    fn what_another_mapping_touched_is_resident() {
        let b = Memfd::new(Bytes(4 * BLOCK_SIZE)).unwrap();
        let other =
            Mapping::new(MappingSource::Shared(b.fd()), 4 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        other.populate(other.range().slice(0, PAGE_BYTES).unwrap()).unwrap();
        let resident = b.residency(b.mapping().range()).unwrap().resident;
        assert!(resident >= Bytes(4096));
        assert_eq!(b.residency(part(&b, 1024, 512)).unwrap().resident, Bytes(0));
        assert_eq!(b.discard(&[b.mapping().range()]).unwrap().freed, resident);
    }
}
