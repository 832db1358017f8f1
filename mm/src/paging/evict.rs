// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking blocks out of guest memory and compressing them.

use std::sync::TryLockError;

use crate::backing::BackingError;
use crate::blocks::mask::PageMask;
use crate::store::{Page, StoreError};
use crate::sys::thread::cpu_time;
use crate::units::{Bytes, GuestRange, PAGE_BYTES, SaturatingInto};

use super::absence::STORE;
use super::pager_engine::{PagerEngine, lock};
use super::source::key;
use super::staging::{Outlet, PAGES};
use super::states::BlockState;
use super::stats::PagerCounters;

/// One page in this many is compressed first, as a sample of compressibility.
const SAMPLE_STEP: usize = 11;
/// Pages compressed between two checks whether the guest accessed the block. The codec's worker is
/// held for that long, and a fault may wait for it.
const BATCH: usize = 32;
/// A block is not compressible if its sample keeps more than this percentage of its size.
const WORTHLESS_PERCENT: usize = 90;

/// Why a block stays in guest memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stay {
    /// It is absent, or in transit.
    #[error("not present")]
    Away,
    /// It is not resident.
    #[error("not resident")]
    Empty,
    /// Part of it is pinned.
    #[error("partly pinned")]
    Pinned,
    /// It consists of small pages and could not be collapsed.
    #[error("not a huge page")]
    NotHuge,
    /// A page is in use by the kernel, or shared.
    #[error("a page is busy")]
    Busy,
    /// The guest accessed it immediately.
    #[error("in use by the guest")]
    Wanted,
    /// It does not compress.
    #[error("not compressible")]
    Incompressible,
    /// All staging slots are in use.
    #[error("no free staging slot")]
    NoSlot,
    /// The budget of mappings is spent.
    #[error("too many mappings")]
    Mappings,
    /// The page map cannot be read, or a huge page cannot be made.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens if the guest accesses a block that is on its way to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnAccess {
    /// The block goes back.
    Return,
    /// The guest waits until the block is stored, and gets the page.
    Wait,
}

impl PagerEngine {
    /// Moves block `index` to a slot, with the guest running. After an error it is in place.
    pub(super) fn take_out(&self, index: usize, on_access: OnAccess) -> Result<usize, Stay> {
        let gate = lock(&self.gate);
        let block = self.areas.block(index).checked_range().expect("a block of RAM");
        self.check(block)?;
        let slot = self.outlet.take().ok_or(Stay::NoSlot)?;
        if let Err(stay) = self.begin_leaving(index) {
            self.outlet.give_back(slot);
            return Err(stay);
        }
        let (place, staged) = (self.areas.host(index), self.outlet.range(slot));
        // SAFETY: both are mapped; this thread holds the slot and has made no reference to it, and
        // there are never references to guest memory.
        let moved = unsafe { self.transfer(staged, place) };
        drop(gate);
        let anyway = on_access == OnAccess::Wait;
        if moved.is_ok() && self.record().left(index, slot, anyway) {
            PagerCounters::add(&self.counters.blocks_out, 1);
            return Ok(slot);
        }
        self.put_back(index, slot);
        match moved {
            Ok(()) => {
                self.outlet.give_back(slot);
                PagerCounters::add(&self.counters.blocks_recalled, 1);
                Err(Stay::Wanted)
            }
            Err(stopped) => {
                tracing::debug!("block {index} stays: {stopped}");
                // Part of a huge page may have been there.
                self.outlet.give_back_small(slot, self.huge, &self.uffd);
                PagerCounters::add(&self.counters.blocks_busy, 1);
                Err(Stay::Busy)
            }
        }
    }

    fn begin_leaving(&self, index: usize) -> Result<(), Stay> {
        let mut record = self.record();
        if !record.begin_leaving(index) {
            return Err(Stay::Away);
        }
        self.register(&mut record, index).map_err(|error| {
            tracing::debug!("cannot register block {index}: {error}");
            record.returned(index);
            Stay::Mappings
        })
    }

    /// Whether `block` may be moved as a whole; collapses it if needed.
    fn check(&self, block: GuestRange) -> Result<(), Stay> {
        if lock(&self.pinned).intersection(block).next().is_some() {
            return Err(Stay::Pinned);
        }
        let resident = |engine: &Self| engine.ram.residency_of(block).map_err(|_| Stay::Away);
        let found = resident(self)?;
        if found.resident == Bytes(0) {
            return Err(Stay::Empty);
        }
        if !self.huge || found.huge == Some(block.bytes()) {
            return Ok(());
        }
        if found.resident != block.bytes() {
            return Err(Stay::NotHuge);
        }
        // This thread already holds the gate.
        let collapsed = self.ram.collapse_held(block);
        if collapsed.is_err() || resident(self)?.huge != Some(block.bytes()) {
            return Err(Stay::NotHuge);
        }
        Ok(())
    }

    /// Makes block `index` huge if only some of its pages are in guest memory; returns the others,
    /// which are zero unless the guest has written to them since. For the moment until it is stored
    /// that takes more memory. Where pages are in the balloon, huge pages are forbidden and it stays.
    pub(super) fn fill_holes(&self, index: usize) -> Result<Option<Box<PageMask>>, Stay> {
        if !self.huge {
            return Ok(None);
        }
        let _gate = lock(&self.gate);
        if *self.record().state(index) != BlockState::Present {
            return Err(Stay::Away);
        }
        let mut there = PageMask::EMPTY;
        let first = self.areas.host(index).addr();
        let page = |addr: usize| (addr - first) / PAGE_BYTES;
        let block = self.areas.block(index).checked_range().expect("a block of RAM");
        let walk = self.ram.walk(block, &mut |run, _| {
            there.set_range(page(run.addr())..page(run.end()));
        });
        walk.map_err(|_| Stay::Away)?;
        if there.is_empty() || there.is_full() {
            return Ok(None);
        }
        if lock(&self.pinned).intersection(block).next().is_some() {
            return Err(Stay::Pinned);
        }
        // This thread already holds the gate.
        self.ram.collapse_held(block).map_err(|_| Stay::NotHuge)?;
        Ok(Some(Box::new(PageMask::FULL.difference(&there))))
    }

    /// Collapses block `index` if it is present in small pages. `false` if the gate is taken: this
    /// never waits.
    pub(super) fn try_make_huge(&self, index: usize) -> bool {
        let _gate = match self.gate.try_lock() {
            Ok(gate) => gate,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if *self.record().state(index) == BlockState::Present {
            let block = self.areas.block(index).checked_range().expect("a block of RAM");
            if let Err(stay) = self.check(block) {
                tracing::debug!("block {index} stays in small pages: {stay}");
            }
        }
        true
    }

    /// Moves a block that this thread holds back to its place.
    pub(super) fn put_back(&self, index: usize, slot: usize) {
        self.move_back(index, slot);
        self.settle(index, |record| record.returned(index));
    }

    /// Compresses block `index`, which lies in `slot`, into the store. Pages of `holes` that are
    /// still zero stay absent when the block comes back. After an error it is in place;
    /// [`Stay::Away`] means that it already was.
    pub(super) fn pack(
        &self,
        index: usize,
        slot: usize,
        on_access: OnAccess,
        holes: Option<&PageMask>,
    ) -> Result<(), Stay> {
        self.outlet.clear_recall(slot);
        if !self.record().begin_packing(index, slot) {
            return Err(Stay::Away);
        }
        let began = cpu_time();
        let packed = self.slot_pages(slot).and_then(|pages| {
            let is_recalled = || on_access == OnAccess::Return && self.outlet.is_recalled(slot);
            self.pack_pages((index, slot), pages, &is_recalled)
        });
        let zero = holes.map(|holes| self.zero_pages(slot, holes));
        let took = (cpu_time() - began).as_nanos().saturating_u64();
        PagerCounters::add(&self.counters.compress_ns, took);
        if packed.is_ok() {
            PagerCounters::add(&self.counters.compress_bytes, (PAGES * PAGE_BYTES) as u64);
            let mut record = self.record();
            if record.packed(index, STORE, on_access == OnAccess::Wait) {
                if let Some(zero) = zero {
                    record.drop_pages(index, &zero);
                }
                drop(record);
                if on_access == OnAccess::Wait {
                    // They try again, and find the page in the store.
                    self.wake(self.areas.host(index));
                }
                self.settled.notify_all();
                self.ages.stored(index);
                PagerCounters::add(&self.counters.blocks_stored, 1);
                self.outlet.give_back(slot);
                return Ok(());
            }
            drop(record);
        }
        // Before other threads may take the block: they may store it again.
        self.sources[0].forget(Self::pages(index));
        self.put_back(index, slot);
        self.outlet.give_back(slot);
        let why = packed.err().unwrap_or(Stay::Wanted);
        match why {
            Stay::Wanted => PagerCounters::add(&self.counters.blocks_recalled, 1),
            Stay::Incompressible => PagerCounters::add(&self.counters.blocks_incompressible, 1),
            _ => {}
        }
        Err(why)
    }

    /// The pages that a slot of the outlet has.
    fn slot_pages(&self, slot: usize) -> Result<Vec<usize>, Stay> {
        let resident = if self.huge { PageMask::FULL } else { self.outlet.resident(slot)? };
        Ok(resident.runs().flatten().collect())
    }

    /// Stores `pages` of block `index`, which lie in a slot that this thread holds, a sample first, until
    /// they are `recalled`.
    pub(super) fn pack_pages(
        &self,
        (index, slot): (usize, usize),
        mut pages: Vec<usize>,
        recalled: &dyn Fn() -> bool,
    ) -> Result<(), Stay> {
        let sample: Vec<usize> = pages.iter().copied().step_by(SAMPLE_STEP).collect();
        let pack = |pages: &[usize]| {
            if recalled() {
                return Err(Stay::Wanted);
            }
            self.idle.relax();
            // SAFETY: this thread holds the slot until the block is packed or put back, and the
            // pages are there.
            unsafe { self.pack_from(&self.outlet, (index, slot), pages) }
        };
        let kept = pack(&sample)?;
        if kept * 100 > sample.len() * PAGE_BYTES * WORTHLESS_PERCENT {
            return Err(Stay::Incompressible);
        }
        pages.retain(|at| sample.binary_search(at).is_err());
        pages.chunks(BATCH).try_for_each(|pages| pack(pages).map(drop))
    }

    /// The pages of `among` that are zero in a slot that this thread holds.
    fn zero_pages(&self, slot: usize, among: &PageMask) -> PageMask {
        let mut zero = PageMask::EMPTY;
        for at in among.runs().flatten() {
            // SAFETY: this thread holds the slot until the block is packed or put back, and all of
            // its pages are there.
            if is_zero(unsafe { self.outlet.page(slot, at) }) {
                zero.insert(at);
            }
        }
        zero
    }

    /// Stores pages of block `index`, which lie in a slot of `outlet`; returns the bytes that they
    /// take.
    ///
    /// # Safety
    /// As for [`Outlet::page`].
    pub(super) unsafe fn pack_from(
        &self,
        outlet: &Outlet,
        (index, slot): (usize, usize),
        pages: &[usize],
    ) -> Result<usize, Stay> {
        let first = Self::pages(index).start;
        let pages = pages.iter().map(|&at| {
            // SAFETY: as promised by the caller.
            (key(first + at as u64), unsafe { outlet.page(slot, at) })
        });
        Ok(self.pool.put(pages.filter(|(_, page)| !is_zero(page)))?)
    }
}

/// Zero pages are not stored: pages absent from the store read as zero.
fn is_zero(page: &Page) -> bool {
    let words = page.as_chunks::<8>().0;
    // Both ends are read at once: one after the other would be two waits for memory.
    let ends = u64::from_ne_bytes(words[0]) | u64::from_ne_bytes(words[words.len() - 1]);
    ends == 0 && words.iter().all(|word| *word == [0; 8])
}
