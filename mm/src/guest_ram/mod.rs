// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest RAM: vm-memory's regions, to read and write it, and their backings, to give it back to the
//! host.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestRegionMmap, MmapRegion};

use crate::backing::{
    Backing, BackingError, BackingKind, Discarded, MemoryRefusal, Residency, RunVisitor,
};
use crate::layout::MemoryLayout;
use crate::units::{Bytes, GuestRange, HostRange, PAGE_BYTES, PAGES_PER_BLOCK, Pages, usize_from};

/// Guest memory as seen by devices, the boot loader and vCPUs.
pub use vm_memory::GuestMemoryMmap;

/// Why guest RAM could not be created, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestRamError {
    /// The operation failed on the host.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// vm-memory refused a region.
    #[error("cannot describe guest memory: {0}")]
    Region(#[from] MmapRegionError),
    /// Regions overlap or are out of order; a layout never is.
    #[error("cannot describe guest memory: {0}")]
    Collection(#[from] vm_memory::GuestRegionCollectionError),
    /// Some of the pages are not RAM.
    #[error("guest pages {0} are not all in RAM")]
    NotRam(GuestRange),
}

impl GuestRamError {
    /// The kernel's reason for refusing; `None` for any other error.
    pub fn refusal(&self) -> Option<MemoryRefusal> {
        match self {
            Self::Backing(error) => error.refusal(),
            _ => None,
        }
    }

    /// Whether the host has no free memory of this kind now.
    pub fn is_out_of_memory(&self) -> bool {
        self.refusal() == Some(MemoryRefusal::OutOfMemory)
    }
}

/// One region of guest RAM.
#[derive(Debug)]
pub struct RamRegion {
    guest: GuestRange,
    backing: Box<dyn Backing>,
    /// vm-memory's region; `GuestRam::drop` checks that no other reference exists.
    mmap: Arc<MmapRegion>,
}

impl RamRegion {
    /// Its guest-physical range.
    pub fn guest(&self) -> GuestRange {
        self.guest
    }

    /// Its range in this process.
    pub fn host(&self) -> HostRange {
        self.backing.mapping().range()
    }

    /// Its backing.
    pub fn backing(&self) -> &dyn Backing {
        self.backing.as_ref()
    }

    /// Where the pages of `range`, which lie in this region, are in this process.
    fn to_host(&self, range: GuestRange) -> Option<HostRange> {
        let offset = range.start().checked_offset_from(self.guest.start())?;
        let offset = offset.checked_bytes()?;
        self.host().slice(usize_from(offset.0), usize_from(range.bytes().0))
    }
}

/// Tracks absent guest memory: compressed, or not yet read in. A trait although the pager is its only
/// implementor: the pager depends on guest RAM, not the reverse.
pub trait AbsentMemory: Send + Sync + fmt::Debug {
    /// Prevents eviction of blocks while the guard is held.
    fn hold(&self) -> MutexGuard<'_, ()>;

    /// Bytes that are elsewhere.
    fn absent(&self) -> Bytes;

    /// Pages of `ranges` are about to be discarded, with [`hold`](Self::hold)'s guard held: absent
    /// ones read as zero from now on, and ones in transit are in place afterwards.
    fn drop_absent(&self, ranges: &[GuestRange]);

    /// All of `range` is about to be allocated: the kernel fills what is empty of it.
    fn release_empty(&self, range: GuestRange);
}

/// All RAM of one guest.
///
/// ```
/// use mm::backing::BackingKind;
/// use mm::guest_ram::GuestRam;
/// use mm::layout::MemoryLayout;
/// use mm::units::{Bytes, GuestRange, Pages, Pfn};
/// use vm_memory::{Bytes as _, GuestAddress};
///
/// let layout = MemoryLayout::new(Bytes(8 << 20), Bytes(0))?;
/// let ram = GuestRam::new(layout, BackingKind::Thp)?;
/// ram.memory().write_obj(7u64, GuestAddress(0x3000))?;
/// let page = GuestRange::new(Pfn(3), Pages(1)).unwrap();
/// ram.discard(&[page])?;
/// assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x3000))?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GuestRam {
    layout: MemoryLayout,
    /// The tracker of absent pages. It may own this object, so this is a weak reference.
    absent: Mutex<Option<Weak<dyn AbsentMemory>>>,
    // Dropped manually: see `Drop`.
    regions: Vec<RamRegion>,
    memory: Arc<GuestMemoryMmap>,
}

impl GuestRam {
    /// Reserves RAM of the given layout. Pages are allocated on first access.
    ///
    /// # Errors
    /// [`GuestRamError::Backing`] if the host refuses the mapping, for example without free huge
    /// pages.
    pub fn new(layout: MemoryLayout, kind: BackingKind) -> Result<Self, GuestRamError> {
        let absent = Mutex::new(None);
        let mut ram = Self { layout, absent, regions: Vec::new(), memory: Arc::default() };
        let mut seen = Vec::new();
        for &guest in ram.layout.ram() {
            let backing = kind.reserve(guest.bytes())?;
            let mmap = Arc::new(region_over(backing.mapping().range())?);
            let region = GuestRegionMmap::with_arc(Arc::clone(&mmap), guest.address());
            seen.push(region.ok_or(GuestRamError::NotRam(guest))?);
            ram.regions.push(RamRegion { guest, backing, mmap });
        }
        ram.memory = Arc::new(GuestMemoryMmap::from_regions(seen)?);
        Ok(ram)
    }

    /// The memory, for reading and writing.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Where everything lies.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// The stretches of RAM, in ascending order.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// All RAM together.
    pub fn pages(&self) -> Pages {
        self.layout.ram_pages()
    }

    /// Whether all of `range` is RAM.
    pub fn contains(&self, range: GuestRange) -> bool {
        self.regions.iter().any(|r| r.guest.covers(&range))
    }

    /// From now on calls `absent` before pages are discarded and before blocks are split or
    /// collapsed.
    pub fn set_absent_memory(&self, absent: Weak<dyn AbsentMemory>) {
        *self.absent.lock().unwrap_or_else(PoisonError::into_inner) = Some(absent);
    }

    /// Absent guest memory: parked, or not yet read in.
    pub fn absent(&self) -> Bytes {
        self.absent_memory().map_or(Bytes(0), |absent| absent.absent())
    }

    fn absent_memory(&self) -> Option<Arc<dyn AbsentMemory>> {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        absent.and_then(|weak| weak.upgrade())
    }

    /// Calls `change`, which discards `ranges`, while no block is evicted.
    fn holding<T>(&self, ranges: &[GuestRange], change: impl FnOnce() -> T) -> T {
        let Some(absent) = self.absent_memory() else { return change() };
        let guard = absent.hold();
        absent.drop_absent(ranges);
        let changed = change();
        drop(guard);
        changed
    }

    /// Gives the pages of `ranges` (ascending, disjoint) back to the host; the guest reads zeroes
    /// there afterwards. Nothing is done if any of them is not RAM.
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub fn discard(&self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        let mut total = Discarded::default();
        let mut batch = Vec::with_capacity(ranges.len());
        if let Some(outside) = ranges.iter().find(|r| !self.contains(**r)) {
            return Err(GuestRamError::NotRam(*outside));
        }
        self.holding(ranges, || {
            for region in &self.regions {
                batch.clear();
                batch.extend(ranges.iter().filter_map(|r| region.to_host(*r)));
                total.add(region.backing.discard(&batch)?);
            }
            Ok(total)
        })
    }

    /// The smallest aligned unit that can be returned to the host; see
    /// [`Backing::discard_unit`].
    pub fn discard_unit(&self) -> Pages {
        let units = self.regions.iter().map(|region| region.backing.discard_unit().as_pages());
        units.max().unwrap_or(Pages(PAGES_PER_BLOCK))
    }

    /// Whether the host always finds memory when a discarded page is accessed; see
    /// [`Backing::refills`].
    pub fn refills(&self) -> bool {
        self.regions.iter().all(|region| region.backing.refills())
    }

    /// Makes all of `range` accessible; see [`Backing::restore`].
    ///
    /// # Errors
    ///
    /// [`GuestRamError::is_out_of_memory`] if the host has too little memory of this kind.
    pub fn restore(&self, range: GuestRange) -> Result<Bytes, GuestRamError> {
        let (region, host) = self.resolve(range)?;
        Ok(region.backing.restore(host)?)
    }

    /// Allocates all of `range` now.
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub fn populate(&self, range: GuestRange) -> Result<(), GuestRamError> {
        let (region, host) = self.resolve(range)?;
        if let Some(absent) = self.absent_memory() {
            absent.release_empty(range);
        }
        Ok(region.backing.populate(host)?)
    }

    /// Makes each block of `range` a huge page; see [`Backing::collapse`].
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub fn collapse(&self, range: GuestRange) -> Result<(), GuestRamError> {
        self.holding(&[], || self.collapse_held(range))
    }

    /// [`collapse`](Self::collapse) for callers that already hold blocks.
    pub(crate) fn collapse_held(&self, range: GuestRange) -> Result<(), GuestRamError> {
        let (region, host) = self.resolve(range)?;
        Ok(region.backing.collapse(host)?)
    }

    /// Whether any part of it can be made of huge pages; see [`Backing::may_be_huge`].
    pub fn may_be_huge(&self) -> bool {
        self.regions.iter().any(|region| region.backing.may_be_huge())
    }

    /// Allows or forbids huge pages in the blocks of `range`; see [`Backing::allow_huge`].
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub fn allow_huge(&self, range: GuestRange, allow: bool) -> Result<(), GuestRamError> {
        let (region, host) = self.resolve(range)?;
        Ok(self.holding(&[], || region.backing.allow_huge(host, allow))?)
    }

    /// Calls `found` for each run of pages of `range` that this process has mapped.
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub(crate) fn walk(
        &self,
        range: GuestRange,
        found: &mut RunVisitor<'_>,
    ) -> Result<(), GuestRamError> {
        let (region, host) = self.resolve(range)?;
        Ok(region.backing.walk(host, found)?)
    }

    /// How much of `range` is in the host's memory.
    ///
    /// # Errors
    /// [`GuestRamError::NotRam`] or [`GuestRamError::Backing`].
    pub fn residency_of(&self, range: GuestRange) -> Result<Residency, GuestRamError> {
        let (region, host) = self.resolve(range)?;
        Ok(region.backing.residency(host)?)
    }

    /// How much of all RAM is in the host's memory.
    ///
    /// # Errors
    /// [`GuestRamError::Backing`].
    pub fn residency(&self) -> Result<Residency, GuestRamError> {
        let mut total = Residency { resident: Bytes(0), huge: Some(Bytes(0)) };
        for region in &self.regions {
            let part = region.backing.residency(region.host())?;
            total.resident = total.resident.saturating_add(part.resident);
            total.huge = total.huge.zip(part.huge).map(|(a, b)| a.saturating_add(b));
        }
        Ok(total)
    }

    fn resolve(&self, range: GuestRange) -> Result<(&RamRegion, HostRange), GuestRamError> {
        let found = self.regions.iter().find_map(|r| Some((r, r.to_host(range)?)));
        found.ok_or(GuestRamError::NotRam(range))
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.memory = Arc::default();
        for region in self.regions.drain(..) {
            let RamRegion { backing, mmap, .. } = region;
            if Arc::strong_count(&mmap) > 1 {
                // A caller still holds a reference from `memory()`: the memory must stay mapped.
                std::mem::forget(backing);
            }
        }
    }
}

/// vm-memory's view of `host`, which it does not own.
fn region_over(host: HostRange) -> Result<MmapRegion, MmapRegionError> {
    debug_assert!(host.len().is_multiple_of(PAGE_BYTES));
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: `host` is a live mapping, readable and writable, and `GuestRam::drop` keeps it for as
    // long as anyone has a region over it.
    unsafe { MmapRegion::build_raw(host.addr() as *mut u8, host.len(), prot, flags) }
}
