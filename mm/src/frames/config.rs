// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration of a pool, and errors of its creation.

use super::ids::FrameRange;

/// Configuration of a pool.
#[derive(Clone, Debug, Default)]
pub struct PoolConfig {
    /// Areas reserved for contiguous allocation, each of whole blocks.
    pub cma: Vec<FrameRange>,
    /// Levels of free memory; by default [`Watermarks::for_frames`].
    pub watermarks: Option<Watermarks>,
    /// Threads with caches of their own; by default twice the processors.
    pub threads: Option<usize>,
    /// Turns the per-thread caches off: every frame comes straight from the free lists.
    pub uncached: bool,
    /// Makes the memory of frames resident in batches as they go to a cache, instead of one fault
    /// for each frame on first write. Takes host memory for up to a batch (32 frames) per thread
    /// before it is needed.
    pub populate: bool,
}

/// Levels of free memory, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Only emergency allocations go below.
    pub min: u32,
    /// Below this the background thread is woken and calls shrinkers.
    pub low: u32,
    /// The background thread reclaims memory up to this level.
    pub high: u32,
}

impl Watermarks {
    /// A thousandth of the pool as reserve, with a quarter of that between the levels.
    #[must_use]
    pub const fn for_frames(frames: u32) -> Self {
        let min = frames / 1024;
        Self { min, low: min + min / 4, high: min + min / 2 }
    }
}

/// Why a pool could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A CMA area is empty, outside the region, not of whole blocks, or overlaps another.
    #[error("invalid CMA area {0:?}: want whole 2 MiB blocks inside the region, without overlap")]
    CmaArea(FrameRange),
    /// 65535 owners have been registered.
    #[error("the pool already has 65535 owners, the maximum")]
    TooManyOwners,
}
