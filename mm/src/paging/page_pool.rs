// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The compressed pages of one guest: a store in a pool of movable frames, with a limit.

use std::sync::Arc;

use crate::frames::{Events, FramePool, Order, PoolConfig, PoolError, Region, RegionError};
use crate::store::{Codec, Key, MmStat, Page, Store, StoreConfig, StoreError};
use crate::units::{BLOCK_SIZE, Bytes, PAGE_SIZE, SaturatingInto, usize_from};
use crate::zsmalloc::ZsConfig;

/// Frames beyond the limit, to make up for the pool's reserve.
const RESERVE_SHARE: u64 = 512;

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PagePoolError {
    /// The host does not give the address space.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The frame pool refused.
    #[error(transparent)]
    Frames(#[from] PoolError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Contents and memory use of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagePoolStats {
    /// The store's figures.
    pub store: MmStat,
    /// Bytes of tables beside the frames.
    pub metadata_bytes: u64,
    /// Most bytes of frames allowed.
    pub limit_bytes: u64,
    /// Free frames, in bytes: frames that were never used or were returned cost nothing.
    pub free_bytes: u64,
    /// Share of free memory in runs smaller than a block, per mille.
    pub fragmentation: u32,
    /// Event counters of the frame pool.
    pub events: Events,
}

/// Pages of one guest, compressed.
pub(super) struct PagePool {
    frames: Arc<FramePool>,
    store: Arc<Store>,
    limit: Bytes,
}

impl PagePool {
    /// Room for `pages` pages in at most `limit` of memory, of which nothing is used yet.
    pub(super) fn new(
        pages: u64,
        limit: Bytes,
        codec: Box<dyn Codec>,
        second: Option<Box<dyn Codec>>,
    ) -> Result<Self, PagePoolError> {
        let frames = limit.as_pages().0.max(1);
        let room = limit.saturating_add(Bytes(limit.0 / RESERVE_SHARE)).0;
        let region = room.next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE);
        let region = Region::anonymous(usize_from(region))?;
        if let Err(error) = region.advise_small() {
            // Costs memory, not correctness: a kernel without huge pages refuses too.
            tracing::debug!("the page pool keeps the host's page size: {error}");
        }
        let frames_limit = frames.saturating_u32();
        let frames =
            FramePool::new(region, PoolConfig { populate: true, ..PoolConfig::default() })?;
        let zs = ZsConfig { movable: true, limit: Some(frames_limit) };
        let capacity = pages.saturating_u32();
        let store = Store::with_second(&frames, codec, second, StoreConfig { capacity, zs })?;
        Ok(Self { frames, store: Arc::new(store), limit })
    }

    /// The store, by page number.
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Keeps pages; returns the bytes that they take.
    pub(super) fn put<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key, &'a Page)>,
    ) -> Result<usize, StoreError> {
        self.store.put_batch(pages).map_err(|(error, _)| error)
    }

    /// Recompresses a page with the second codec; returns the bytes saved.
    pub(super) fn repack(&self, key: Key) -> Result<usize, StoreError> {
        self.store.repack(key)
    }

    /// Packs the pages closer and gives what that empties back to the host. Returns the bytes of
    /// frames that packing emptied.
    pub(super) fn compact(&self) -> u64 {
        let emptied = self.store.compact() * PAGE_SIZE;
        if let Err(error) = self.frames.trim(Order::ZERO) {
            tracing::warn!("cannot return free memory of the page pool to the host: {error}");
        }
        emptied
    }

    /// Its contents and memory use.
    pub(super) fn stats(&self) -> PagePoolStats {
        let free = self.frames.accounting().free;
        let per_frame = FramePool::metadata_bytes_per_frame() as u64;
        let tables = u64::from(self.frames.frame_count()) * per_frame;
        PagePoolStats {
            store: self.store.mm_stat(),
            metadata_bytes: self.store.metadata_bytes() + tables,
            limit_bytes: self.limit.0,
            free_bytes: u64::from(free) * PAGE_SIZE,
            fragmentation: self.frames.fragmentation(),
            events: self.frames.events(),
        }
    }
}
