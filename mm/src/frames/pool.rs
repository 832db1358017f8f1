// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: a pool of frames over a region.

use std::sync::{Arc, Weak};

use super::account::{self, Accounting, BlockKinds, FreeInfo};
use super::alloc;
use super::compaction::{self, CompactionReport};
use super::config::{PoolConfig, PoolError, Watermarks};
use super::contig::{Contig, ContigError};
use super::events::Events;
use super::gfp::{AllocError, Gfp};
use super::ids::Order;
use super::page::FrameTable;
use super::pool_core::PoolCore;
use super::region::Region;
use super::shrink::Shrink;
use super::token::{ContigFrames, Frames, FreeError, PoolId};
use super::validate::{self, Inconsistent};
use crate::units::SaturatingInto;

/// A pool of 4 KiB frames.
///
/// ```
/// use mm::frames::{FramePool, Gfp, Order, PoolConfig, Region};
///
/// let pool = FramePool::new(Region::anonymous(4 << 20)?, PoolConfig::default())?;
/// let mut frames = pool.alloc(Order::new(2).unwrap(), Gfp::UNMOVABLE)?;
/// pool.bytes_mut(&mut frames).fill(7);
/// assert_eq!(pool.bytes(&frames).len(), 4 * 4096);
/// pool.free(frames)?;
/// assert_eq!(pool.accounting().used, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FramePool {
    core: PoolCore,
    contig: Contig,
}

impl FramePool {
    /// A pool over all of `region`, everything free.
    ///
    /// # Errors
    /// [`PoolError::CmaArea`].
    pub fn new(region: Region, config: PoolConfig) -> Result<Arc<Self>, PoolError> {
        let core = PoolCore::new(region, &config)?;
        Ok(Arc::new(Self { core, contig: Contig::new(&config.cma) }))
    }

    /// Registers a shrinker: it is asked for frames by allocations that would fail otherwise, and
    /// by the background thread below the `low` watermark, up to `high`. The pool does not keep
    /// it alive.
    pub fn register_shrinker(&self, shrinker: Weak<dyn Shrink>) {
        self.core.shrinkers().register(shrinker);
    }

    /// Allocates a unit of `order`. Its contents are undefined: they may be an earlier holder's.
    ///
    /// # Errors
    /// [`AllocError`], after shrinkers and compaction have been tried if `gfp` allows.
    #[inline]
    pub fn alloc(&self, order: Order, gfp: Gfp) -> Result<Frames, AllocError> {
        let first = alloc::alloc(&self.core, order, gfp)?;
        Ok(Frames::new(first, order, self.id()))
    }

    /// Gives a unit back.
    ///
    /// # Errors
    /// [`FreeError::Foreign`].
    #[inline]
    pub fn free(&self, frames: Frames) -> Result<(), FreeError> {
        if frames.pool() != self.id() {
            return Err(FreeError::Foreign(frames));
        }
        let (first, order) = frames.into_parts();
        if order == Order::ZERO {
            self.core.free_single(first);
        } else {
            self.core.free_unit(first, order);
        }
        Ok(())
    }

    /// The contents of a unit.
    ///
    /// # Panics
    /// If the unit belongs to another pool.
    #[must_use]
    pub fn bytes<'a>(&'a self, frames: &'a Frames) -> &'a [u8] {
        assert_eq!(frames.pool(), self.id(), "frames of another pool");
        // SAFETY: `frames` is the only handle on this memory and is borrowed for 'a, so there is no
        // concurrent `bytes_mut` or `free`; no other code touches unmovable frames.
        unsafe { self.region().slice(frames.first(), frames.order().frames()) }
    }

    /// The contents of a unit, to write.
    ///
    /// # Panics
    /// If the unit belongs to another pool.
    #[must_use]
    pub fn bytes_mut<'a>(&'a self, frames: &'a mut Frames) -> &'a mut [u8] {
        assert_eq!(frames.pool(), self.id(), "frames of another pool");
        // SAFETY: as for `bytes`, and the only handle is borrowed exclusively.
        unsafe { self.region().slice_mut(frames.first(), frames.order().frames()) }
    }

    /// Compacts the whole pool. Waits for locks and for owners.
    pub fn compact(&self) -> CompactionReport {
        compaction::compact(&self.core)
    }

    /// Allocates a run of `count` frames at a multiple of `align` frames, outside the CMA areas.
    ///
    /// # Errors
    /// [`ContigError::NotFound`] if no range could be evacuated, or an error of the request.
    pub fn alloc_contig(&self, count: u32, align: u32) -> Result<ContigFrames, ContigError> {
        self.contig.alloc(&self.core, count, align)
    }

    /// Allocates a run of `count` frames at a multiple of `align` frames from CMA area `area`,
    /// counted from 0 in the order of [`PoolConfig::cma`].
    ///
    /// # Errors
    /// [`ContigError::NotFound`] if no range could be evacuated, or an error of the request.
    pub fn alloc_cma(
        &self,
        area: usize,
        count: u32,
        align: u32,
    ) -> Result<ContigFrames, ContigError> {
        self.contig.alloc_cma(&self.core, area, count, align)
    }

    /// Gives a run back.
    ///
    /// # Errors
    /// [`ContigError::Foreign`], with the run.
    pub fn free_contig(&self, run: ContigFrames) -> Result<(), (ContigError, ContigFrames)> {
        self.contig.free(&self.core, run)
    }

    /// The contents of a contiguous run.
    ///
    /// # Panics
    /// If the run belongs to another pool.
    #[must_use]
    pub fn contig_bytes<'a>(&'a self, run: &'a ContigFrames) -> &'a [u8] {
        assert_eq!(run.pool(), self.id(), "frames of another pool");
        // SAFETY: `run` is the only handle on this memory and is borrowed for 'a.
        unsafe { self.region().slice(run.range().start, run.range().count()) }
    }

    /// The contents of a contiguous run, to write.
    ///
    /// # Panics
    /// If the run belongs to another pool.
    #[must_use]
    pub fn contig_bytes_mut<'a>(&'a self, run: &'a mut ContigFrames) -> &'a mut [u8] {
        assert_eq!(run.pool(), self.id(), "frames of another pool");
        // SAFETY: `run` is the only handle on this memory and is borrowed exclusively for 'a.
        unsafe { self.region().slice_mut(run.range().start, run.range().count()) }
    }

    /// The memory of the pool; a caller may access only the frames that it holds.
    #[must_use]
    pub fn region(&self) -> &Region {
        self.core.space().region()
    }

    /// Frames in the pool.
    #[must_use]
    pub fn frame_count(&self) -> u32 {
        self.core.frame_count()
    }

    /// Which pool this is.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.core.space().id()
    }

    /// The watermarks in force.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.core.marks()
    }

    /// Bytes of metadata for each frame.
    #[must_use]
    pub const fn metadata_bytes_per_frame() -> usize {
        FrameTable::bytes_per_frame()
    }

    /// Gives all cached frames back to the free lists.
    pub fn drain_caches(&self) {
        self.core.drain_caches();
    }

    /// Where all frames are. Exact: takes every lock for a moment.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        account::accounting(&self.core)
    }

    /// Free units by type and order, and the types of the blocks.
    #[must_use]
    pub fn free_info(&self) -> FreeInfo {
        account::free_info(&self.core)
    }

    /// Share of the free memory outside whole free blocks, 0 to 100: how fragmented free memory
    /// is for requests of a block.
    #[must_use]
    pub fn fragmentation(&self) -> u32 {
        account::fragmentation(&self.core)
    }

    /// Blocks by what prevents them from being free.
    #[must_use]
    pub fn block_kinds(&self) -> BlockKinds {
        account::block_kinds(&self.core)
    }

    /// Counters of events.
    #[must_use]
    pub fn events(&self) -> Events {
        self.core.events().snapshot()
    }

    /// Frames currently isolated for migration.
    #[must_use]
    pub fn isolated_now(&self) -> u32 {
        self.core.isolated().saturating_u32()
    }

    /// Checks every list, every frame and every counter against each other, and returns the
    /// accounting. For tests and for diagnosis; linear in the size of the pool. Call it only while
    /// no compaction and no contiguous allocation is running.
    ///
    /// # Errors
    /// [`Inconsistent`], naming the first contradiction.
    pub fn validate(&self) -> Result<Accounting, Inconsistent> {
        validate::validate(&self.core)
    }

    pub(super) fn core(&self) -> &PoolCore {
        &self.core
    }

    /// Recreates the token of a unit whose holder dismantled it.
    pub(crate) fn token(&self, first: super::ids::FrameId, order: Order) -> Frames {
        Frames::new(first, order, self.id())
    }
}
