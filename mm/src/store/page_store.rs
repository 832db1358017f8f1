// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The store: maps keys to pages, each stored in the cheapest form.
//!
//! A key's slot has a lock of its own, held while its page is read, so a page is never read half
//! replaced. Compression happens outside it. Lock order: a worker of the first codec, one of the
//! second, slots by ascending key, a bundle's entry, then zsmalloc's: a writer that has compressed a page
//! still holds its worker when it locks the slot, so a reader takes a worker before it knows
//! whether it needs one.

use std::sync::Arc;

use super::bundle::Second;
use super::codec::Codec;
use super::error::StoreError;
use super::slot::{Kept, StoreSlot};
use super::slot_table::{Key, SlotTable};
use super::stat::{MmStat, StoreCounters};
use super::workers::{Bench, Lent, Workers};
use crate::frames::FramePool;
use crate::units::PAGE_BYTES;
use crate::zsmalloc::{Handle, MAX_SIZE, Mapped, ZsConfig, ZsPool};

/// A page's bytes.
pub type Page = [u8; PAGE_BYTES];

/// Configuration of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Number of keys, from 0 up.
    pub capacity: u32,
    /// How pages are kept.
    pub zs: ZsConfig,
}

/// A store of compressed pages.
///
/// ```
/// use mm::frames::{FramePool, PoolConfig, Region};
/// use mm::store::{Key, Lz4, Store, StoreConfig};
/// use mm::zsmalloc::ZsConfig;
///
/// let frames = FramePool::new(Region::anonymous(4 << 20)?, PoolConfig::default())?;
/// let config = StoreConfig { capacity: 1024, zs: ZsConfig::default() };
/// let store = Store::new(&frames, Box::new(Lz4), config)?;
/// let mut page = [0; 4096];
/// page[..5].copy_from_slice(b"hello");
/// store.put(Key(7), &page)?;
/// let mut read = [0; 4096];
/// store.take(Key(7), &mut read)?;
/// assert_eq!(read, page);
/// assert!(!store.contains(Key(7))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Store {
    zs: Arc<ZsPool>,
    pub(super) workers: Workers,
    pub(super) second: Option<Second>,
    config: StoreConfig,
    pub(super) table: SlotTable,
    pub(super) counters: StoreCounters,
}

impl Store {
    /// A store over frames of `frames`.
    ///
    /// # Errors
    /// [`StoreError::Pool`].
    pub fn new(
        frames: &Arc<FramePool>,
        codec: Box<dyn Codec>,
        config: StoreConfig,
    ) -> Result<Self, StoreError> {
        Self::with_second(frames, codec, None, config)
    }

    /// A store with a second codec, slower and denser, for pages that are [repacked](Self::repack).
    ///
    /// # Errors
    /// [`StoreError::Pool`].
    pub fn with_second(
        frames: &Arc<FramePool>,
        codec: Box<dyn Codec>,
        second: Option<Box<dyn Codec>>,
        config: StoreConfig,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            zs: ZsPool::new(frames, config.zs)?,
            workers: Workers::new(codec, PAGE_BYTES),
            second: second.map(|codec| Second::new(codec, config.capacity)),
            config,
            table: SlotTable::new(config.capacity),
            counters: StoreCounters::default(),
        })
    }

    /// Where the objects are kept.
    #[must_use]
    pub fn zs(&self) -> &Arc<ZsPool> {
        &self.zs
    }

    /// Stores a page, in place of what was there.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::NoRoom`] or [`StoreError::Codec`]; what was
    /// there stays.
    pub fn put(&self, key: Key, page: &Page) -> Result<(), StoreError> {
        self.put_batch([(key, page)]).map(drop).map_err(|(error, _)| error)
    }

    /// Stores pages one after the other with one codec worker, which is held until the last:
    /// `pages` must not use the store itself. The pages are read where they lie; a caller that
    /// stores guest memory must prevent changes first (write-protect or move it with userfaultfd).
    /// Returns the bytes that they take in the store.
    ///
    /// # Errors
    /// As [`put`](Self::put), with the number of pages stored before.
    pub fn put_batch<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key, &'a Page)>,
    ) -> Result<usize, (StoreError, usize)> {
        let mut bench = None;
        let mut kept = 0;
        for (done, (key, page)) in pages.into_iter().enumerate() {
            kept += self.put_one(key, page, &mut bench).map_err(|error| (error, done))?.bytes();
        }
        Ok(kept)
    }

    /// Reads a page into `to`.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::Absent`] or [`StoreError::Codec`].
    pub fn get(&self, key: Key, to: &mut Page) -> Result<(), StoreError> {
        self.read(key, to, &mut None)
    }

    /// Reads pages directly into their destinations. As for [`put_batch`](Self::put_batch), `pages`
    /// must not use the store.
    ///
    /// # Errors
    /// As [`get`](Self::get), with the number of pages read before.
    pub fn get_batch<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key, &'a mut Page)>,
    ) -> Result<(), (StoreError, usize)> {
        let mut bench = None;
        for (done, (key, to)) in pages.into_iter().enumerate() {
            self.read(key, to, &mut bench).map_err(|error| (error, done))?;
        }
        Ok(())
    }

    /// Reads a page and removes it, as a resolved fault no longer needs the copy.
    ///
    /// # Errors
    /// As [`get`](Self::get); the page then stays.
    pub fn take(&self, key: Key, to: &mut Page) -> Result<(), StoreError> {
        let mut cached = None;
        let kept = self.with_kept(key, &mut cached, |slot, kept, bench| {
            self.restore(key, kept, to, bench)?;
            Ok(self.replace(key, slot, Kept::Nothing))
        })?;
        self.release(kept);
        Ok(())
    }

    /// Removes a page; `false` if there was none.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn remove(&self, key: Key) -> Result<bool, StoreError> {
        let kept = self.replace(key, &mut *self.table.slot(key)?, Kept::Nothing);
        self.release(kept);
        Ok(kept != Kept::Nothing)
    }

    /// Whether a page is stored under `key`.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn contains(&self, key: Key) -> Result<bool, StoreError> {
        Ok(self.table.slot(key)?.kept() != Kept::Nothing)
    }

    /// Bytes that the page under `key` takes in the store: 0 for a page of one repeated word, or an
    /// absent page.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn stored_len(&self, key: Key) -> Result<usize, StoreError> {
        Ok(self.table.slot(key)?.kept().bytes())
    }

    /// Packs what is stored into fewer frames; returns how many were given back.
    pub fn compact(&self) -> u64 {
        self.zs.compact()
    }

    /// Number of keys.
    pub(super) fn capacity(&self) -> u32 {
        self.config.capacity
    }

    /// Statistics.
    #[must_use]
    pub fn mm_stat(&self) -> MmStat {
        let zs = self.zs.stats();
        let page = PAGE_BYTES as u64;
        let mut stat = MmStat {
            mem_used_total: zs.frames * page,
            mem_limit: self.config.zs.limit.map_or(0, |limit| u64::from(limit) * page),
            mem_used_max: zs.frames_max * page,
            pages_compacted: zs.frames_compacted,
            ..MmStat::default()
        };
        self.counters.fill(&mut stat, page);
        stat
    }

    /// Bytes of the key table and of zsmalloc's tables.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        let bundles = self.second.as_ref().map_or(0, |second| second.bundles.bytes());
        (self.table.bytes() + bundles) as u64 + self.zs.stats().metadata_bytes
    }

    fn put_one<'s>(
        &'s self,
        key: Key,
        page: &Page,
        cached: &mut Option<Lent<'s>>,
    ) -> Result<Kept, StoreError> {
        // Before any work for a key that does not exist.
        drop(self.table.slot(key)?);
        let kept = match same_filled(page) {
            Some(word) => Kept::Same(word),
            None => self.pack(page, cached)?,
        };
        self.counters.add(kept);
        let old = self.replace(key, &mut *self.table.slot(key)?, kept);
        self.release(old);
        Ok(kept)
    }

    fn pack<'s>(&'s self, page: &Page, cached: &mut Option<Lent<'s>>) -> Result<Kept, StoreError> {
        let bench = self.workers.bench(cached)?;
        // A page that would take a whole frame anyway is stored unchanged and needs no
        // decompression.
        let packed = bench.worker.compress(page).filter(|d| !self.zs.takes_a_frame(d.len()));
        match packed {
            Some(data) => {
                let handle = self.zs.alloc(data.len())?;
                self.fill(handle, data)?;
                Ok(Kept::Packed(handle, data.len()))
            }
            None => {
                let handle = self.zs.alloc(MAX_SIZE)?;
                self.fill(handle, page)?;
                Ok(Kept::Raw(handle))
            }
        }
    }

    fn fill(&self, handle: Handle, data: &[u8]) -> Result<(), StoreError> {
        let mut mapped: Mapped<'_> = self.zs.map(handle)?;
        mapped.write(data);
        Ok(())
    }

    fn read<'s>(
        &'s self,
        key: Key,
        to: &mut Page,
        cached: &mut Option<Lent<'s>>,
    ) -> Result<(), StoreError> {
        self.with_kept(key, cached, |_, kept, bench| self.restore(key, kept, to, bench))
    }

    /// Calls `act` with a slot that is locked, what it keeps, and a worker that can restore it.
    fn with_kept<'s, R>(
        &'s self,
        key: Key,
        cached: &mut Option<Lent<'s>>,
        act: impl FnOnce(&mut StoreSlot, Kept, &mut Bench) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        loop {
            // Workers come before slots; the page may be repacked in between.
            let bundled = matches!(self.table.slot(key)?.kept(), Kept::Bundled(_));
            let mut cached_second = None;
            let bench = match &self.second {
                Some(second) if bundled => second.workers.bench(&mut cached_second)?,
                _ => self.workers.bench(cached)?,
            };
            let mut slot = self.table.slot(key)?;
            let kept = slot.kept();
            if matches!(kept, Kept::Bundled(_)) == bundled {
                return act(&mut slot, kept, bench);
            }
        }
    }

    /// Restores a page; the caller holds its slot, and a worker of the codec that compressed it.
    pub(super) fn restore(
        &self,
        key: Key,
        kept: Kept,
        to: &mut Page,
        bench: &mut Bench,
    ) -> Result<(), StoreError> {
        match kept {
            Kept::Nothing => return Err(StoreError::Absent(key.0)),
            Kept::Same(word) => to.as_chunks_mut().0.fill(word.to_ne_bytes()),
            Kept::Raw(handle) => self.zs.map(handle)?.read(to),
            Kept::Packed(handle, len) => {
                let mapped = self.zs.map(handle)?;
                bench.worker.decompress(mapped.contiguous(len, &mut bench.spare), to)?;
            }
            Kept::Bundled(_) => {
                let bundle = self.second.as_ref().and_then(|second| second.bundles.get(key));
                let bundle = bundle.ok_or(StoreError::Absent(key.0))?;
                to.copy_from_slice(bundle.read(&self.zs, key, bench)?);
            }
        }
        Ok(())
    }

    /// Changes what a slot keeps; returns what it kept, to be [released](Self::release) once the
    /// slot is unlocked.
    fn replace(&self, key: Key, slot: &mut StoreSlot, kept: Kept) -> Kept {
        let old = std::mem::replace(slot, StoreSlot::new(kept)).kept();
        if let (Kept::Bundled(_), Some(second)) = (old, &self.second)
            && let Some(bundle) = second.bundles.drop_page(key)
        {
            bundle.free(&self.zs);
        }
        old
    }

    /// Gives back what a slot held.
    pub(super) fn release(&self, kept: Kept) {
        self.counters.sub(kept);
        let (Kept::Raw(handle) | Kept::Packed(handle, _)) = kept else { return };
        let freed = self.zs.free(handle);
        debug_assert!(freed.is_ok(), "a handle from a slot of ours: {freed:?}");
    }
}

/// The word that a page consists of, if it does.
fn same_filled(page: &Page) -> Option<u64> {
    let words = page.as_chunks::<8>().0;
    let first = words[0];
    // Most pages differ in their first or last word, which ends the comparison early.
    (words[words.len() - 1] == first && words.iter().all(|w| *w == first))
        .then(|| u64::from_ne_bytes(first))
}
