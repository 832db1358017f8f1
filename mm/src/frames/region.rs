// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory under a pool: one mapping, 2 MiB-aligned, anonymous, memfd, hugetlb or borrowed.
//!
//! Rules for the raw memory. The SAFETY comments here and in the callers refer to them:
//! 1. A region's mapping lives exactly as long as the [`Region`], readable and writable.
//! 2. A reference into the region is made only for bytes that the maker alone may touch: the
//!    holder of an allocated frame, the holder of a locked frame, the core for a destination.
//! 3. Addresses are computed from checked frame numbers, never taken from outside.

use std::io;
use std::ptr::NonNull;

use super::ids::FrameId;
#[cfg(not(miri))]
use crate::sys::mapping::{HugePageSize, Mapping, MappingSource};
use crate::units::{BLOCK_BYTES, PAGE_BYTES};

/// Why a region could not be created.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The size is zero, not a multiple of 2 MiB, or more than 2^32 - 1 frames.
    #[error("invalid region size: {0} bytes (want a positive multiple of 2 MiB below 16 TiB)")]
    Size(usize),
    /// The address is not aligned to 2 MiB.
    #[error("region address {0:#x} is not aligned to 2 MiB")]
    Alignment(usize),
    /// A system call failed.
    #[error("cannot {what} {bytes} bytes: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// The system's error.
        source: io::Error,
    },
}

/// Where a region's memory comes from.
#[derive(Debug)]
enum RegionOrigin {
    #[cfg(not(miri))]
    Mapped(Mapping),
    #[cfg(miri)]
    Heap(std::alloc::Layout),
    Borrowed,
}

/// A mapped, 2 MiB-aligned piece of memory.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    origin: RegionOrigin,
}

// SAFETY: a `Region` is an address and a length; who may touch which bytes is settled by the pool
// (rule 2 above), and unmapping happens once, in `drop`, on any thread.
unsafe impl Send for Region {}
// SAFETY: as for `Send`; no method with `&self` touches the memory on its own account.
unsafe impl Sync for Region {}

#[cfg(not(miri))]
fn refused(what: &'static str, bytes: usize, source: io::Error) -> RegionError {
    RegionError::Os { what, bytes, source }
}

fn check_size(bytes: usize) -> Result<(), RegionError> {
    let frames = bytes / PAGE_BYTES;
    if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) || frames >= u32::MAX as usize {
        return Err(RegionError::Size(bytes));
    }
    Ok(())
}

impl Region {
    /// Private anonymous memory of `bytes` bytes, a multiple of 2 MiB. Pages are allocated on first
    /// write; transparent huge pages follow the host's setting.
    ///
    /// # Errors
    /// [`RegionError::Size`] or [`RegionError::Os`].
    #[cfg(not(miri))]
    pub fn anonymous(bytes: usize) -> Result<Self, RegionError> {
        Self::mapped(MappingSource::Anonymous, bytes)
    }

    /// Memory from the heap: Miri knows no `mmap` with alignment.
    ///
    /// # Errors
    /// [`RegionError::Size`].
    #[cfg(miri)]
    pub fn anonymous(bytes: usize) -> Result<Self, RegionError> {
        check_size(bytes)?;
        let layout = std::alloc::Layout::from_size_align(bytes, BLOCK_BYTES)
            .map_err(|_| RegionError::Size(bytes))?;
        // SAFETY: the size is not zero, checked above.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or(RegionError::Size(bytes))?;
        Ok(Self { base, bytes, origin: RegionOrigin::Heap(layout) })
    }

    /// Shared memory of a new memfd, `bytes` bytes, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`RegionError::Size`] or [`RegionError::Os`].
    #[cfg(not(miri))]
    pub fn memfd(bytes: usize) -> Result<Self, RegionError> {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        use std::os::fd::AsFd;
        check_size(bytes)?;
        // The mapping keeps the file's memory; the descriptor is no longer needed.
        let file = memfd_create(c"ballast-frames", MemfdFlags::CLOEXEC)
            .map_err(|e| refused("create a memfd of", bytes, e.into()))?;
        ftruncate(&file, bytes as u64).map_err(|e| refused("size a memfd to", bytes, e.into()))?;
        Self::mapped(MappingSource::Shared(file.as_fd()), bytes)
    }

    /// 2 MiB hugetlbfs pages, reserved immediately; fails if the host has too few free ones.
    ///
    /// # Errors
    /// [`RegionError::Size`] or [`RegionError::Os`].
    #[cfg(not(miri))]
    pub fn hugetlb(bytes: usize) -> Result<Self, RegionError> {
        Self::mapped(MappingSource::Hugetlb(HugePageSize::TwoMib), bytes)
    }

    #[cfg(not(miri))]
    fn mapped(source: MappingSource<'_>, bytes: usize) -> Result<Self, RegionError> {
        check_size(bytes)?;
        let mapping = Mapping::new(source, bytes, BLOCK_BYTES)
            .map_err(|source| refused("map", bytes, source))?;
        let base = std::ptr::with_exposed_provenance_mut(mapping.range().addr());
        let base = NonNull::new(base).expect("the kernel never maps address zero here");
        Ok(Self { base, bytes, origin: RegionOrigin::Mapped(mapping) })
    }

    /// A region over memory that the caller mapped.
    ///
    /// # Errors
    /// [`RegionError::Size`] or [`RegionError::Alignment`].
    ///
    /// # Safety
    /// `base..base + bytes` must be mapped readable and writable for as long as the region lives,
    /// and nothing else in the process may read or write it during that time.
    pub unsafe fn borrowed(base: NonNull<u8>, bytes: usize) -> Result<Self, RegionError> {
        check_size(bytes)?;
        if !base.addr().get().is_multiple_of(BLOCK_BYTES) {
            return Err(RegionError::Alignment(base.addr().get()));
        }
        Ok(Self { base, bytes, origin: RegionOrigin::Borrowed })
    }

    /// Asks for transparent huge pages under a region of our own (`MADV_HUGEPAGE`).
    ///
    /// # Errors
    /// [`RegionError::Os`].
    #[cfg(not(miri))]
    pub fn advise_huge(&self) -> Result<(), RegionError> {
        match &self.origin {
            RegionOrigin::Mapped(mapping) => mapping
                .set_huge(mapping.range(), true)
                .map_err(|source| refused("advise huge pages for", self.bytes, source)),
            // The caller that mapped it controls its pages.
            RegionOrigin::Borrowed => Ok(()),
        }
    }

    /// Asks for small pages under a region of our own (`MADV_NOHUGEPAGE`), so that each frame that
    /// is discarded is free on the host at once.
    ///
    /// # Errors
    /// The kernel's refusal.
    #[cfg(not(miri))]
    pub fn advise_small(&self) -> Result<(), RegionError> {
        match &self.origin {
            RegionOrigin::Mapped(mapping) => mapping
                .set_huge(mapping.range(), false)
                .map_err(|source| refused("advise small pages for", self.bytes, source)),
            RegionOrigin::Borrowed => Ok(()),
        }
    }

    /// Gives the memory of `count` frames from `first` back to the host. Private memory reads as
    /// zero afterwards; memory of other kinds may stay.
    ///
    /// # Errors
    /// The kernel's refusal.
    ///
    /// # Safety
    /// As for [`slice_mut`](Self::slice_mut): the frames are the caller's alone.
    #[cfg(not(miri))]
    pub(crate) unsafe fn discard(&self, first: FrameId, count: u32) -> Result<(), RegionError> {
        let len = self.checked_len(first, count);
        let RegionOrigin::Mapped(mapping) = &self.origin else { return Ok(()) };
        let range = mapping.range().slice(first.byte_offset(), len).expect("checked above");
        mapping.discard(range).map_err(|source| refused("discard", len, source))
    }

    /// Makes the memory of `count` frames from `first` resident, as by writing it, without changing
    /// its contents. Borrowed memory is left to its owner.
    ///
    /// # Errors
    /// The kernel's refusal, for example `ENOMEM`.
    #[cfg(not(miri))]
    pub(crate) fn populate(&self, first: FrameId, count: usize) -> Result<(), RegionError> {
        let RegionOrigin::Mapped(mapping) = &self.origin else { return Ok(()) };
        let len = count * PAGE_BYTES;
        let range = mapping.range().slice(first.byte_offset(), len).expect("frames of the region");
        mapping.populate(range).map_err(|source| refused("populate", len, source))
    }

    /// Nothing: memory of the heap is always there.
    ///
    /// # Errors
    /// None.
    #[cfg(miri)]
    pub(crate) fn populate(&self, _: FrameId, _: usize) -> Result<(), RegionError> {
        Ok(())
    }

    /// Nothing: the heap cannot return single pages.
    ///
    /// # Errors
    /// None.
    ///
    /// # Safety
    /// None.
    #[cfg(miri)]
    pub(crate) unsafe fn discard(&self, _: FrameId, _: u32) -> Result<(), RegionError> {
        Ok(())
    }

    /// Bytes in the region.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames in the region.
    #[must_use]
    pub fn frames(&self) -> u32 {
        // Below 2^32, checked when the region was made.
        (self.bytes / PAGE_BYTES) as u32
    }

    /// Address of the first byte of `frame`.
    ///
    /// # Panics
    /// If the frame lies outside the region.
    #[inline]
    #[must_use]
    pub fn ptr(&self, frame: FrameId) -> NonNull<u8> {
        let offset = frame.byte_offset();
        assert!(offset < self.bytes, "{frame:?} is outside a region of {} bytes", self.bytes);
        // SAFETY: the offset lies inside the mapping (rule 1), checked above.
        unsafe { self.base.add(offset) }
    }

    /// The bytes of `count` frames from `first`.
    ///
    /// # Safety
    /// For the lifetime of the result no other code writes these frames (rule 2).
    pub(crate) unsafe fn slice(&self, first: FrameId, count: u32) -> &[u8] {
        let len = self.checked_len(first, count);
        // SAFETY: the range lies in the mapping (checked) and the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.ptr(first).as_ptr(), len) }
    }

    /// The bytes of `count` frames from `first`, to write.
    ///
    /// # Safety
    /// For the lifetime of the result no other code touches these frames (rule 2).
    #[allow(clippy::mut_from_ref, reason = "the caller promises that there is no other")]
    pub(crate) unsafe fn slice_mut(&self, first: FrameId, count: u32) -> &mut [u8] {
        let len = self.checked_len(first, count);
        // SAFETY: the range lies in the mapping (checked) and is the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(first).as_ptr(), len) }
    }

    fn checked_len(&self, first: FrameId, count: u32) -> usize {
        let len = count as usize * PAGE_BYTES;
        assert!(first.byte_offset() + len <= self.bytes, "{count} frames from {first:?}");
        len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match &self.origin {
            #[cfg(not(miri))]
            // Unmaps itself.
            RegionOrigin::Mapped(_) => {}
            #[cfg(miri)]
            // SAFETY: allocated in `anonymous` with this layout, and given up here.
            RegionOrigin::Heap(layout) => unsafe {
                std::alloc::dealloc(self.base.as_ptr(), *layout)
            },
            RegionOrigin::Borrowed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bad_sizes() {
        for bytes in [0, 1, PAGE_BYTES, BLOCK_BYTES + PAGE_BYTES] {
            assert!(matches!(Region::anonymous(bytes), Err(RegionError::Size(_))));
        }
        let huge = BLOCK_BYTES << 24;
        assert!(matches!(Region::anonymous(huge), Err(RegionError::Size(_))));
    }

    #[test]
    fn is_aligned_zeroed_and_writable() {
        let region = Region::anonymous(2 * BLOCK_BYTES).unwrap();
        assert!(region.ptr(FrameId::new(0)).addr().get().is_multiple_of(BLOCK_BYTES));
        // SAFETY: no other code knows this region.
        let last = unsafe { region.slice_mut(FrameId::new(1023), 1) };
        assert!(last.iter().all(|&b| b == 0));
        last.fill(7);
    }

    #[test]
    #[cfg(not(miri))]
    fn memfd_is_aligned_and_writable() {
        let region = Region::memfd(2 * BLOCK_BYTES).unwrap();
        assert!(region.ptr(FrameId::new(0)).addr().get().is_multiple_of(BLOCK_BYTES));
        // SAFETY: no other code knows this region.
        let all = unsafe { region.slice_mut(FrameId::new(0), 1024) };
        all.fill(9);
        assert_eq!(all[BLOCK_BYTES], 9);
    }

    #[test]
    fn borrowed_checks_alignment() {
        let owner = Region::anonymous(2 * BLOCK_BYTES).unwrap();
        // SAFETY: both regions are refused or unused.
        let odd = unsafe { Region::borrowed(owner.ptr(FrameId::new(1)), BLOCK_BYTES) };
        assert!(matches!(odd, Err(RegionError::Alignment(_))));
        // SAFETY: `owner` outlives it and is not used itself.
        let good = unsafe { Region::borrowed(owner.ptr(FrameId::new(512)), BLOCK_BYTES) };
        assert_eq!(good.unwrap().frames(), 512);
    }
}
