// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bundles: pages with neighbouring keys that the second codec has compressed as one piece, which
//! is denser and faster than page by page.
//!
//! A bundle never changes, apart from which of its pages are still in use. The lock of a page's
//! slot keeps the page's bundle: it is freed when the last slot has let go of it, or when
//! [`Store::repack`](super::Store::repack), which holds the locks of all its slots, replaces it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::codec::Codec;
use super::error::StoreError;
use super::slot_table::Key;
use super::workers::{Bench, Workers};
use crate::frames::sync::SpinLock;
use crate::units::PAGE_BYTES;
use crate::zsmalloc::{Handle, MAX_SIZE, ZsPool};

/// Most pages in a bundle.
pub(super) const BUNDLE_PAGES: u32 = 16;
/// Most bytes in a bundle.
pub(super) const BUNDLE_BYTES: usize = BUNDLE_PAGES as usize * PAGE_BYTES;

/// Pages that are compressed as one piece.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Never given twice: a worker knows by it which bundle it has restored.
    id: u64,
    /// The data, in objects of a whole frame and a last one for the rest.
    pieces: Vec<Handle>,
    len: usize,
    /// Which of the keys it was made of, a bit for each.
    pages: u16,
}

impl Bundle {
    /// Stores `data`, which has the pages of `pages` in ascending order.
    pub(super) fn store(zs: &ZsPool, data: &[u8], pages: u16) -> Result<Self, StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut bundle = Self { id, pieces: Vec::new(), len: data.len(), pages };
        for piece in data.chunks(MAX_SIZE) {
            let stored = zs.alloc(piece.len()).and_then(|handle| {
                bundle.pieces.push(handle);
                zs.map(handle).map(|mut mapped| mapped.write(piece))
            });
            if let Err(error) = stored {
                bundle.free(zs);
                return Err(error.into());
            }
        }
        Ok(bundle)
    }

    /// Which bundle it is.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Frees what it takes.
    pub(super) fn free(&self, zs: &ZsPool) {
        for handle in &self.pieces {
            let freed = zs.free(*handle);
            debug_assert!(freed.is_ok(), "a handle of a bundle of ours: {freed:?}");
        }
    }

    /// Restores the page of `key`; `bench` remembers the others.
    pub(super) fn read<'b>(
        &self,
        zs: &ZsPool,
        key: Key,
        bench: &'b mut Bench,
    ) -> Result<&'b [u8], StoreError> {
        let Bench { worker, spare, unpacked, restored } = bench;
        let size = self.pages.count_ones() as usize * PAGE_BYTES;
        if *restored != Some(self.id) {
            *restored = None;
            unpacked.resize(BUNDLE_BYTES, 0);
            for (handle, piece) in self.pieces.iter().zip(spare[..self.len].chunks_mut(MAX_SIZE)) {
                zs.map(*handle)?.read(piece);
            }
            worker.decompress(&spare[..self.len], &mut unpacked[..size])?;
            *restored = Some(self.id);
        }
        let before = (self.pages & (bit(key) - 1)).count_ones() as usize;
        Ok(&unpacked[before * PAGE_BYTES..][..PAGE_BYTES])
    }
}

/// The bit of a key in its bundle.
pub(super) fn bit(key: Key) -> u16 {
    1 << (key.0 % BUNDLE_PAGES)
}

/// A bundle, and the pages of it that are in use.
type Entry = SpinLock<Option<(Arc<Bundle>, u16)>>;

/// The bundles of a store, by key. To be called with the key's slot locked.
pub(super) struct Bundles {
    entries: Box<[Entry]>,
}

impl Bundles {
    /// For the keys below `capacity`.
    pub(super) fn new(capacity: u32) -> Self {
        let entries = 0..capacity.div_ceil(BUNDLE_PAGES);
        Self { entries: entries.map(|_| SpinLock::new(None)).collect() }
    }

    fn entry(&self, key: Key) -> &Entry {
        &self.entries[(key.0 / BUNDLE_PAGES) as usize]
    }

    /// The bundle of `key`.
    pub(super) fn get(&self, key: Key) -> Option<Arc<Bundle>> {
        self.entry(key).lock().as_ref().map(|(bundle, _)| Arc::clone(bundle))
    }

    /// Replaces the bundle of `key`, all of whose slots the caller has locked; returns the one
    /// before.
    pub(super) fn replace(&self, key: Key, bundle: Bundle) -> Option<Arc<Bundle>> {
        let pages = bundle.pages;
        let before = self.entry(key).lock().replace((Arc::new(bundle), pages));
        before.map(|(bundle, _)| bundle)
    }

    /// The page of `key` is no longer needed; returns the bundle if it was the last.
    pub(super) fn drop_page(&self, key: Key) -> Option<Arc<Bundle>> {
        let mut entry = self.entry(key).lock();
        let (_, pages) = entry.as_mut()?;
        *pages &= !bit(key);
        if *pages != 0 {
            return None;
        }
        entry.take().map(|(bundle, _)| bundle)
    }

    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }
}

/// The second codec of a store, and what it has compressed.
pub(super) struct Second {
    pub(super) workers: Workers,
    pub(super) bundles: Bundles,
}

impl Second {
    /// For the keys below `capacity`.
    pub(super) fn new(codec: Box<dyn Codec>, capacity: u32) -> Self {
        Self { workers: Workers::new(codec, BUNDLE_BYTES), bundles: Bundles::new(capacity) }
    }
}
