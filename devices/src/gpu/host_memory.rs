// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host memory that a guest makes this device take, and its way into the guest.
//!
//! Images of 2D resources and host blobs come from a [`HostMemory`], through a [`Budget`] that
//! counts every byte. Host blobs reach the guest through a [`HostWindow`], which the monitor gives:
//! it alone knows how to make host memory appear in guest-physical address space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// There is no host memory for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no host memory for {asked} more bytes")]
pub struct OutOfHostMemory {
    /// Bytes asked for.
    pub asked: u64,
}

/// Some host memory, readable and writable, zeroed when it was given, freed when dropped.
///
/// # Safety
///
/// [`HostRegion::bytes`] always gives the same memory, which stays mapped, where it is and
/// writable, for as long as the region lives: a guest may have it mapped.
pub unsafe trait HostRegion: Send + Sync {
    /// All of it.
    fn bytes(&self) -> VolatileSlice<'_>;
}

/// Where host memory comes from.
pub trait HostMemory: Send {
    /// `bytes` zeroed bytes (a whole number of pages, not 0) that begin at a page.
    fn allocate(&mut self, bytes: usize) -> Result<Box<dyn HostRegion>, OutOfHostMemory>;
}

/// Private anonymous memory: it takes no page before a page is touched.
#[derive(Debug, Default)]
pub struct AnonymousMemory;

impl HostMemory for AnonymousMemory {
    fn allocate(&mut self, bytes: usize) -> Result<Box<dyn HostRegion>, OutOfHostMemory> {
        match MmapRegion::<()>::new(bytes) {
            Ok(region) => Ok(Box::new(Anonymous(region))),
            Err(_) => Err(OutOfHostMemory { asked: bytes as u64 }),
        }
    }
}

struct Anonymous(MmapRegion<()>);

// SAFETY: an anonymous mapping is unmapped only when it is dropped.
unsafe impl HostRegion for Anonymous {
    fn bytes(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// Host memory up to a limit.
pub(super) struct Budget {
    source: Box<dyn HostMemory>,
    limit: u64,
    used: Arc<AtomicU64>,
}

impl Budget {
    /// At most `limit` bytes of what `source` gives.
    pub(super) fn new(source: Box<dyn HostMemory>, limit: u64) -> Self {
        Self { source, limit, used: Arc::default() }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// True when `bytes` can never be had, whatever is freed.
    pub(super) fn never_has(&self, bytes: u64) -> bool {
        bytes > self.limit
    }

    /// `bytes` zeroed bytes, rounded up to whole pages, which are counted until they are dropped.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Arc<Held>, OutOfHostMemory> {
        let error = OutOfHostMemory { asked: bytes };
        let charge = bytes.checked_next_multiple_of(super::backing::PAGE_SIZE).ok_or(error)?;
        let left = self.limit.saturating_sub(self.used());
        if charge == 0 || charge > left {
            return Err(error);
        }
        let region = self.source.allocate(usize::try_from(charge).map_err(|_| error)?)?;
        self.used.fetch_add(charge, Ordering::Relaxed);
        Ok(Arc::new(Held { region, charge, used: Arc::clone(&self.used) }))
    }
}

/// Memory that a budget counts.
pub(super) struct Held {
    region: Box<dyn HostRegion>,
    charge: u64,
    used: Arc<AtomicU64>,
}

impl Held {
    /// Bytes that it takes of the budget.
    pub(super) fn charge(&self) -> u64 {
        self.charge
    }

    /// Copies a range out; false when it is not inside.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let slice = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes().subslice(offset, out.len()).ok());
        slice.is_some_and(|slice| slice.copy_to(out) == out.len())
    }
}

// SAFETY: it is the region that it holds.
unsafe impl HostRegion for Held {
    fn bytes(&self) -> VolatileSlice<'_> {
        self.region.bytes()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.used.fetch_sub(self.charge, Ordering::Relaxed);
    }
}

/// The host-visible window: guest-physical addresses at which host memory can appear.
///
/// Offsets and lengths are multiples of the page size and inside the window, and no two mappings
/// overlap: the caller sees to that.
pub trait HostWindow: Send {
    /// Bytes of the window.
    fn size(&self) -> u64;

    /// Makes `memory` appear at `offset`. The window keeps it alive until it is unmapped.
    fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> std::io::Result<()>;

    /// Takes away what was mapped at `offset`; on return no vCPU can reach it any more.
    fn unmap(&mut self, offset: u64) -> std::io::Result<()>;
}

/// Why a place in the window cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The device has no window.
    #[error("there is no host-visible window")]
    None,
    /// The offset is not a multiple of the page size.
    #[error("the offset is not at a page")]
    Unaligned,
    /// Not, or not wholly, in the window.
    #[error("the range leaves the window")]
    Outside,
    /// Something is mapped there.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// The host refused.
    #[error("the host refused the mapping")]
    Host,
}
