// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host memory that a guest can make this device allocate, and its mapping into the guest.
//!
//! Images of 2D resources and host blobs come from a [`HostMemory`], through a [`HostPool`] that
//! charges every byte to the device's budget. Host blobs reach the guest through a [`HostWindow`],
//! which the monitor provides: only it can map host memory into guest-physical address space.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mm::budget::{Budget, BudgetError, Charge};
use mm::units::usize_from;
use rustix::mm::{Advice, madvise};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::resource_backing::PAGE_SIZE;

/// There is no host memory for a guest's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfHostMemory {
    /// The device's budget is used up.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The host refused.
    #[error("cannot allocate {0} more bytes of host memory")]
    Host(u64),
}

/// Host memory, readable and writable, zeroed on allocation, freed when dropped.
///
/// # Safety
///
/// [`HostRegion::bytes`] always gives the same memory, which stays mapped at the same address and
/// writable while the region lives: a guest may have it mapped.
pub unsafe trait HostRegion: Send + Sync {
    /// All of it.
    fn bytes(&self) -> VolatileSlice<'_>;

    /// Frees the memory of the bytes in `range`, whole pages of it, which read as zero afterwards:
    /// a large region is freed in steps before it is dropped. One that cannot does nothing.
    fn discard(&self, _range: Range<usize>) {}
}

/// A source of host memory.
pub trait HostMemory: Send {
    /// Allocates `bytes` zeroed bytes (a whole number of pages, not 0), page-aligned.
    ///
    /// # Errors
    ///
    /// [`OutOfHostMemory::Host`] when the host refuses.
    fn allocate(&mut self, bytes: usize) -> Result<Box<dyn HostRegion>, OutOfHostMemory>;
}

/// Private anonymous memory: pages are allocated on first access.
#[derive(Debug, Default)]
pub struct AnonymousMemory;

impl HostMemory for AnonymousMemory {
    fn allocate(&mut self, bytes: usize) -> Result<Box<dyn HostRegion>, OutOfHostMemory> {
        match MmapRegion::<()>::new(bytes) {
            Ok(region) => Ok(Box::new(AnonymousRegion(region))),
            Err(_) => Err(OutOfHostMemory::Host(bytes as u64)),
        }
    }
}

struct AnonymousRegion(MmapRegion<()>);

// SAFETY: an anonymous mapping is unmapped only when it is dropped.
unsafe impl HostRegion for AnonymousRegion {
    fn bytes(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }

    fn discard(&self, range: Range<usize>) {
        let all = self.bytes();
        let Ok(part) = all.subslice(range.start, range.len()) else { return };
        let start = part.ptr_guard_mut();
        // SAFETY: the range is part of a private anonymous mapping that lives as long as `self`.
        // The call changes its contents and nothing else, and all access to it is volatile.
        let freed = unsafe { madvise(start.as_ptr().cast(), part.len(), Advice::LinuxDontNeed) };
        // Where the host refuses, the memory is freed with the mapping.
        let _ = freed;
    }
}

/// Host memory that is charged to a budget.
pub(super) struct HostPool {
    source: Box<dyn HostMemory>,
    budget: Arc<Budget>,
    /// Bytes handed out; the budget also has other users.
    used: Arc<AtomicU64>,
}

impl HostPool {
    /// A pool over `source`, charged to `budget`.
    pub(super) fn new(source: Box<dyn HostMemory>, budget: Arc<Budget>) -> Self {
        Self { source, budget, used: Arc::default() }
    }

    /// The budget.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Bytes given out.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether `bytes` exceeds what the pool could allocate with everything freed.
    pub(super) fn never_has(&self, bytes: u64) -> bool {
        bytes > self.budget.limit()
    }

    /// `bytes` zeroed bytes, rounded up to whole pages, which are charged until they are dropped.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Arc<Held>, OutOfHostMemory> {
        let error = OutOfHostMemory::Host(bytes);
        let len = bytes.checked_next_multiple_of(PAGE_SIZE).filter(|len| *len > 0).ok_or(error)?;
        let charge = self.budget.try_charge(len)?;
        let region = self.source.allocate(usize_from(len))?;
        self.used.fetch_add(len, Ordering::Relaxed);
        Ok(Arc::new(Held { region, charge, used: Arc::clone(&self.used) }))
    }
}

/// Memory of a [`HostPool`].
pub(super) struct Held {
    region: Box<dyn HostRegion>,
    charge: Charge,
    used: Arc<AtomicU64>,
}

impl Held {
    /// Bytes that it takes.
    pub(super) fn len(&self) -> u64 {
        self.charge.amount()
    }

    /// Copies a range out; false when it is not inside.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let slice = self.bytes().subslice(usize_from(offset), out.len());
        slice.is_ok_and(|slice| slice.copy_to(out) == out.len())
    }
}

// SAFETY: it is the region that it holds.
unsafe impl HostRegion for Held {
    fn bytes(&self) -> VolatileSlice<'_> {
        self.region.bytes()
    }

    fn discard(&self, range: Range<usize>) {
        self.region.discard(range);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.used.fetch_sub(self.charge.amount(), Ordering::Relaxed);
    }
}

/// The host-visible window: guest-physical addresses at which host memory can appear.
///
/// Offsets and lengths are multiples of the page size and inside the window, and no two mappings
/// overlap: the caller sees to that.
pub trait HostWindow: Send {
    /// Bytes of the window.
    fn size(&self) -> u64;

    /// Maps `memory` at `offset`. The window keeps it alive until it is unmapped.
    ///
    /// # Errors
    ///
    /// When the host refuses; nothing is mapped then.
    fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> std::io::Result<()>;

    /// Unmaps the memory at `offset`; on return no vCPU can access it.
    ///
    /// # Errors
    ///
    /// The host's error; the memory then stays mapped.
    fn unmap(&mut self, offset: u64) -> std::io::Result<()>;
}

/// Why memory cannot be mapped at a place in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The device has no window.
    #[error("the device has no host-visible window")]
    None,
    /// The offset is not a multiple of the page size.
    #[error("the offset is not a multiple of the page size")]
    Unaligned,
    /// Not, or not wholly, in the window.
    #[error("the range exceeds the window")]
    Outside,
    /// Something is mapped there.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// As many mappings as the device may have.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The host refused.
    #[error("the host refused the mapping")]
    Host,
}
