// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Movable frames: a pool of host memory in which contiguous space can always be made.
//!
//! The pool hands out 4 KiB frames and power-of-two units of them from one mapped region. It follows
//! Linux's rules for movable pages outside the LRU lists: an owner implements [`MovableOps`], and
//! then compaction and contiguous allocation can move its frames. This folder uses `std`, and of
//! this crate `units` and `sys::mapping`. docs/memory.md describes the design.
//!
//! Arrows between files go down this list only:
//!
//! - `background.rs` a thread that compacts ahead of need
//! - `owner.rs` an owner's side of a pool: frames that the pool may move
//! - `owned.rs` a unit that frees itself
//! - `pool.rs` the front door, [`FramePool`]
//! - `validate.rs` recounts everything · `account.rs` statistics
//! - `trim.rs` gives the memory of free frames back to the host
//! - `alloc.rs` how an allocation is served
//! - `contig.rs` runs of any length · `isolate.rs` evacuates a range · `compaction.rs` a run of the
//!   scanners · `free_scan.rs` the one for free frames · `migrate.rs` moves frames in batches ·
//!   `reclaim.rs` asks shrinkers
//! - `pool_core.rs` the state of a pool, below all operations
//! - `zone.rs` what its lock guards · `scan_cursor.rs` compaction's memory · `buddy.rs` free lists ·
//!   `cache.rs` per-thread caches · `cma.rs` areas for contiguous memory
//! - `shrink.rs` owners that can free frames · `callbacks.rs` calls into owners · `movable.rs` the
//!   contract with them
//! - `space.rs` bytes and words of the frames · `region.rs` the memory · `page.rs` the state word
//!   of a frame · `pageblock.rs` migrate types · `wakeup.rs` wakes the background thread
//! - `config.rs`, `gfp.rs`, `token.rs` arguments and results · `events.rs` counters · `ids.rs`
//!   frame numbers and orders · `sync.rs` atomics and a small lock
//!
//! `loom_tests.rs` model checks · `tests/` everything else. `unsafe` is in `region` (slices),
//! `space`, `pool` and `trim` (who may touch which slice) and `sync`.

mod account;
mod alloc;
mod background;
mod buddy;
mod cache;
mod callbacks;
mod cma;
mod compaction;
mod config;
mod contig;
mod events;
mod free_scan;
mod gfp;
mod ids;
mod isolate;
mod migrate;
mod movable;
mod owned;
mod owner;
mod page;
mod pageblock;
mod pool;
mod pool_core;
mod reclaim;
mod region;
mod scan_cursor;
mod shrink;
mod space;
pub(crate) mod sync;
mod token;
mod trim;
mod validate;
mod wakeup;
mod zone;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use cache::thread_number;

pub use account::{Accounting, BlockKinds, FreeInfo};
pub use background::{Background, Pace};
pub use compaction::{CompactEnd, CompactionReport, Goal};
pub use config::{PoolConfig, PoolError, Watermarks};
pub use contig::ContigError;
pub use events::Events;
pub use gfp::{AllocError, Gfp};
pub use ids::{
    BLOCK_FRAMES, BLOCK_ORDER, FrameBlock, FrameId, FrameRange, MAX_ORDER, NR_ORDERS, Order,
};
pub use movable::{LockedFrame, MigrateError, MigrateMode, MovableOps, TargetFrame};
pub use owned::OwnedFrames;
pub use owner::{Owner, OwnerError};
pub use page::OwnerId;
pub use pageblock::{MigrateType, Mobility, NR_TYPES};
pub use pool::FramePool;
pub use region::{Region, RegionError};
pub use shrink::Shrink;
pub use token::{ContigFrames, Frames, FreeError, PoolId};
pub use validate::Inconsistent;
