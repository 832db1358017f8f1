// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Movable frames: a pool of host memory from which contiguous space can always be made.
//!
//! The pool hands out 4 KiB frames and power-of-two units of them from one mapped region, and runs
//! by the rules that Linux has for pages outside its own lists: an owner that says how its frames
//! are moved ([`MovableOps`]) gets them moved, so that compaction and contiguous allocation never
//! stop at them. It may use `std`, `rustix` and, of this crate, `sys::mapping`. docs/memory.md tells
//! how it all works together.
//!
//! Front: [`pool`](FramePool) the front door · `region` the memory · `movable` the contract with
//! owners · `shrink` whom to ask for memory · `stats` numbers for people · `validate` the recount.
//! Mechanism: `ids` frame numbers and orders · `page` the word of state of each frame · `pageblock`
//! migrate types · `buddy` free lists · `cache` per-thread caches · `zone` what the lock guards ·
//! `migrate` isolating and moving · `compaction` the two scanners · `background` their thread ·
//! `contig` runs of any length and CMA · `sync` atomics and a small lock.
//!
//! `unsafe` is in `region` (slices), `pool` (which slices are whose) and `sync`.

mod background;
mod buddy;
mod cache;
mod compaction;
mod contig;
mod ids;
mod migrate;
mod movable;
mod page;
mod pageblock;
mod pool;
mod region;
mod shrink;
mod stats;
pub(crate) mod sync;
mod validate;
mod zone;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use cache::thread_number;

pub use background::{Background, Budget};
pub use compaction::{CompactEnd, CompactReport, Goal};
pub use contig::{ContigError, ContigFrames};
pub use ids::{
    BLOCK_FRAMES, BLOCK_ORDER, BLOCK_SIZE, BlockIndex, FRAME_SHIFT, FRAME_SIZE, FrameId,
    FrameRange, MAX_ORDER, NR_ORDERS, Order,
};
pub use movable::{
    LockedFrame, MigrateError, MigrateMode, MovableOps, Owner, OwnerError, TargetFrame,
};
pub use page::OwnerId;
pub use pageblock::{MigrateType, Mobility, NR_TYPES};
pub use pool::{
    AllocError, FramePool, Frames, FreeError, Gfp, OwnedFrames, PoolConfig, PoolError, PoolId,
};
pub use region::{Region, RegionError};
pub use shrink::Shrink;
pub use stats::{Accounting, Events, FreeInfo};
pub use validate::Inconsistent;
pub use zone::Watermarks;
