// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Staging: address space beside guest memory for blocks in transit, one slot per block.
//!
//! Blocks leave guest memory through [`Outlet`], which is registered, as UFFDIO_MOVE requires of
//! its destination. They return through an [`Inlet`], which is not registered: otherwise the thread
//! that fills it would have to resolve its own faults.
//!
//! **Aliasing.** A slot's addresses are known to this module alone. Only the slot's holder, by the
//! record of blocks, makes references to it, and none that outlive the next move; the guest's pages
//! are here only while the guest cannot reach them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::backing::BackingError;
use crate::blocks::mask::PageMask;
use crate::store::Page;
use crate::sys::mapping::{Mapping, MappingSource};
use crate::sys::pagemap::{MappedAs, Pagemap};
use crate::sys::userfault::Userfault;
use crate::units::{BLOCK_BYTES, HostRange, PAGE_BYTES, PAGES_PER_BLOCK};

/// Pages in a block, as an index has them.
pub(super) const PAGES: usize = PAGES_PER_BLOCK as usize;

fn slot_range(mapping: &Mapping, slot: usize) -> HostRange {
    mapping.range().slice(slot * BLOCK_BYTES, BLOCK_BYTES).expect("a slot that exists")
}

fn map(slots: usize, huge: bool) -> io::Result<Mapping> {
    let mapping = Mapping::new(MappingSource::Anonymous, slots * BLOCK_BYTES, BLOCK_BYTES)?;
    match mapping.set_huge(mapping.range(), huge) {
        // A kernel without huge pages.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(mapping),
    }
}

/// Replaces the mapping of `range`, by huge pages if `huge`. Small pages leave a page table in which there is
/// never a huge page again.
fn renew(mapping: &Mapping, range: HostRange, huge: bool) -> io::Result<()> {
    mapping.renew(range)?;
    if let Err(error) = mapping.set_huge(range, huge) {
        tracing::debug!("staging memory keeps the host's page size: {error}");
    }
    Ok(())
}

/// Slots for blocks that leave guest memory.
#[derive(Debug)]
pub(super) struct Outlet {
    mapping: Mapping,
    pagemap: Pagemap,
    free: Mutex<Vec<usize>>,
    /// Set when the block in a slot is requested while its pages are being compressed.
    recalled: Vec<AtomicBool>,
}

impl Outlet {
    /// `slots` slots, registered with `uffd`; of huge pages if guest memory is.
    pub(super) fn new(slots: usize, huge: bool, uffd: &Userfault) -> io::Result<Self> {
        let mapping = map(slots, huge)?;
        uffd.register(mapping.range())?;
        Ok(Self {
            mapping,
            pagemap: Pagemap::open()?,
            free: Mutex::new((0..slots).rev().collect()),
            recalled: (0..slots).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// Takes a free slot.
    pub(super) fn take(&self) -> Option<usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Slots that there are.
    pub(super) fn slots(&self) -> usize {
        self.recalled.len()
    }

    /// Returns a slot, and its pages to the host.
    pub(super) fn give_back(&self, slot: usize) {
        if let Err(error) = self.mapping.discard(self.range(slot)) {
            // The slot stays out of use, as a block can only be moved to an empty place.
            tracing::error!("lost a staging slot: {error}");
            return;
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }

    /// Returns a slot that held small pages instead of a huge one, with a new mapping.
    pub(super) fn give_back_small(&self, slot: usize, huge: bool, uffd: &Userfault) {
        let range = self.range(slot);
        let renewed = renew(&self.mapping, range, huge).and_then(|()| uffd.register(range));
        match renewed {
            Ok(()) => self.give_back(slot),
            Err(error) => tracing::error!("lost a staging slot: {error}"),
        }
    }

    /// Where a slot is.
    pub(super) fn range(&self, slot: usize) -> HostRange {
        slot_range(&self.mapping, slot)
    }

    /// The pages of a slot that are there.
    pub(super) fn resident(&self, slot: usize) -> Result<PageMask, BackingError> {
        self.pages_at(self.range(slot))
    }

    /// The pages of `range`, at most a block, that are there.
    pub(super) fn pages_at(&self, range: HostRange) -> Result<PageMask, BackingError> {
        let mut mask = PageMask::EMPTY;
        let page = |addr: usize| (addr - range.addr()) / PAGE_BYTES;
        let walk =
            self.pagemap.walk(range, |run, _| mask.set_range(page(run.addr())..page(run.end())));
        walk.map_err(BackingError::Pagemap)?;
        Ok(mask)
    }

    /// Whether `addr` lies in a slot.
    pub(super) fn contains(&self, addr: usize) -> bool {
        (self.mapping.range().addr()..self.mapping.range().end()).contains(&addr)
    }

    /// Asks the reader of a slot's pages to stop.
    pub(super) fn recall(&self, slot: usize) {
        self.recalled[slot].store(true, Ordering::Release);
    }

    /// Whether the reader of a slot is to stop.
    pub(super) fn is_recalled(&self, slot: usize) -> bool {
        self.recalled[slot].load(Ordering::Acquire)
    }

    /// Begins reading a slot.
    pub(super) fn clear_recall(&self, slot: usize) {
        self.recalled[slot].store(false, Ordering::Release);
    }

    /// A page of a slot.
    ///
    /// # Safety
    /// The caller holds the slot, all of the page has been moved there, and nothing is moved away
    /// before the reference ends.
    pub(super) unsafe fn page(&self, slot: usize, page: usize) -> &Page {
        let addr = self.range(slot).addr() + page * PAGE_BYTES;
        assert!(page < PAGES, "a block has {PAGES} pages");
        // SAFETY: the address lies in the mapping (`range` checked the slot, the line above the
        // page), is aligned, and no other code uses its bytes for as long as the caller holds the
        // slot.
        unsafe { &*std::ptr::with_exposed_provenance::<Page>(addr) }
    }
}

/// A thread's staging space for blocks that it brings into guest memory.
#[derive(Debug)]
pub(super) struct Inlet {
    /// One huge page, for blocks that come back whole.
    whole: Mapping,
    pagemap: Pagemap,
    /// A new mapping has small pages, too: the host has no huge page.
    no_huge_page: bool,
    /// A few small pages, for pages that are copied.
    scratch: Mapping,
    /// Whether `whole` has its pages, all zero.
    ready: bool,
}

impl Inlet {
    /// Pages that are copied at once.
    pub(super) const PIECE: usize = 16;

    /// Takes address space only.
    pub(super) fn new() -> io::Result<Self> {
        let scratch = Mapping::new(MappingSource::Anonymous, Self::PIECE * PAGE_BYTES, PAGE_BYTES)?;
        let (whole, pagemap) = (map(1, true)?, Pagemap::open()?);
        Ok(Self { whole, pagemap, no_huge_page: false, scratch, ready: false })
    }

    /// Allocates the pages for the next whole block in advance.
    ///
    /// A block that had small pages takes a huge page in small ones: the kernel splits it first, and
    /// here, too, a page table is left in which there is never a huge page again. So the space is
    /// renewed then.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.ready {
            return Ok(());
        }
        let range = self.whole.range();
        self.whole.populate(range)?;
        if !self.no_huge_page && !self.is_huge()? {
            renew(&self.whole, range, true)?;
            self.whole.populate(range)?;
            self.no_huge_page = !self.is_huge()?;
        }
        self.ready = true;
        Ok(())
    }

    /// Whether no small page is known to be there.
    fn is_huge(&self) -> io::Result<bool> {
        let mut huge = true;
        self.pagemap.walk(self.whole.range(), |_, mapped| huge &= mapped != MappedAs::Small)?;
        Ok(huge)
    }

    /// Returns all pages to the host.
    pub(super) fn release(&mut self) {
        for mapping in [&self.whole, &self.scratch] {
            if let Err(error) = mapping.discard(mapping.range()) {
                tracing::warn!("cannot return staging memory to the host: {error}");
            }
        }
        self.ready = false;
        self.no_huge_page = false;
    }

    /// Where a whole block is assembled.
    pub(super) fn whole(&self) -> HostRange {
        self.whole.range()
    }

    /// Where pages to copy are assembled.
    pub(super) fn scratch_range(&self) -> HostRange {
        self.scratch.range()
    }

    /// The pages of [`whole`](Self::whole), all zero after [`prepare`](Self::prepare). They count
    /// as used afterwards.
    pub(super) fn whole_pages(&mut self) -> &mut [Page] {
        self.ready = false;
        let first = std::ptr::with_exposed_provenance_mut::<Page>(self.whole.range().addr());
        // SAFETY: the mapping has that many pages, readable and writable, and they are known to
        // this inlet alone, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(first, PAGES) }
    }

    /// The first `count` pages of [`scratch_range`](Self::scratch_range), with any contents.
    pub(super) fn scratch(&mut self, count: usize) -> &mut [Page] {
        assert!(count <= Self::PIECE, "at most {} pages are copied at once", Self::PIECE);
        let first = std::ptr::with_exposed_provenance_mut::<Page>(self.scratch.range().addr());
        // SAFETY: as for `whole_pages`; the number was checked.
        unsafe { std::slice::from_raw_parts_mut(first, count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A huge page that was moved to a place with a page table leaves one.
    #[test]
    fn staging_is_huge_again_after_it_was_small() {
        let mut inlet = Inlet::new().unwrap();
        inlet.prepare().unwrap();
        if !inlet.is_huge().unwrap() {
            // This host has no huge pages.
            return;
        }
        let range = inlet.whole.range();
        inlet.whole.renew(range).unwrap();
        inlet.whole.set_huge(range, false).unwrap();
        inlet.whole.populate(range).unwrap();
        // In halves: newer kernels free the page table of a block that is discarded as a whole.
        for half in [0..PAGES / 2, PAGES / 2..PAGES] {
            inlet.whole.discard(range.pages(half)).unwrap();
        }
        inlet.whole.set_huge(range, true).unwrap();
        inlet.whole_pages();
        inlet.prepare().unwrap();
        assert!(inlet.is_huge().unwrap());
    }
}
