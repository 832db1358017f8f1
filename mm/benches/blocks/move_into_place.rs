// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An experiment: make a block huge by copying it into a fresh huge page that UFFDIO_MOVE then puts
//! in its place, write-protected by userfaultfd during the copy so that no write is lost.
//!
//! The kernel moves a huge page whole only to where no page table is; before Linux 6.14 discarding
//! a block leaves its page table behind, so there the block ends up in small pages again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mm::sys::mapping::{Mapping, MappingSource};
use mm::units::{BLOCK_BYTES, HostRange};
use rustix::mm::UserfaultfdFlags;

/// linux/userfaultfd.h.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFDIO_MOVE: libc::Ioctl = 0xc028_aa05_u32 as libc::Ioctl;
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06_u32 as libc::Ioctl;
const MISSING_AND_WP: u64 = 1 | 2;

/// What it takes to move blocks of one range.
pub(crate) struct Mover {
    fd: OwnedFd,
    target: HostRange,
}

impl Mover {
    pub(crate) fn new(target: HostRange) -> io::Result<Self> {
        // SAFETY: a userfaultfd changes nothing until ranges are registered with it.
        let fd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        let mover = Self { fd, target };
        mover.call(UFFDIO_API, &mut [UFFD_API, 0, 0])?;
        Ok(mover)
    }

    /// Makes every block of the target huge, if the kernel can.
    pub(crate) fn make_huge(&self) -> io::Result<()> {
        let staging = Mapping::new(MappingSource::Anonymous, self.target.len(), BLOCK_BYTES)?;
        staging.set_huge(staging.range(), true)?;
        let (base, len) = (self.target.addr() as u64, self.target.len() as u64);
        self.call(UFFDIO_REGISTER, &mut [base, len, MISSING_AND_WP, 0])?;
        for offset in (0..self.target.len()).step_by(BLOCK_BYTES) {
            let to = self.target.addr() + offset;
            let from = staging.range().addr() + offset;
            let block = BLOCK_BYTES as u64;
            self.call(UFFDIO_WRITEPROTECT, &mut [to as u64, block, 1])?;
            // SAFETY: both are mapped, whole blocks, and different mappings; no other thread writes
            // them, and no reference to either exists.
            unsafe { std::ptr::copy_nonoverlapping(to as *const u8, from as *mut u8, BLOCK_BYTES) };
            // SAFETY: the target is this program's own; what it held was copied.
            let gone = unsafe { libc::madvise(to as *mut _, BLOCK_BYTES, libc::MADV_DONTNEED) };
            if gone != 0 {
                return Err(io::Error::last_os_error());
            }
            while let Err(error) =
                self.call(UFFDIO_MOVE, &mut [to as u64, from as u64, block, 0, 0])
            {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
            }
        }
        self.call(UFFDIO_UNREGISTER, &mut [base, len])
    }

    /// All of the structures are made of 64-bit words.
    fn call(&self, request: libc::Ioctl, words: &mut [u64]) -> io::Result<()> {
        // SAFETY: `words` is as long as the structure that `request` reads and writes.
        let failed = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, words.as_mut_ptr()) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
