// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! zsmalloc: packs objects of 1 to 4096 bytes tightly into movable frames.
//!
//! Objects of similar size share a *zspage*, a chain of one to eight frames chosen so that little
//! is left over at its end; an object may lie across two frames of the chain. What the user holds
//! is a [`Handle`], which stays valid while objects move between zspages (compaction) and while
//! frames move in the pool (migration). Uses [`crate::frame`] and nothing else of this crate.
//!
//! ```text
//!   Handle --> entry: [gen | zspage | object | LIVE | LOCK] --> Zspage: frames [f0 f1 f2 ...]
//!                              ^                                            |
//!                              +-------- header of the object <-------------+
//! ```
//!
//! Lock order, outermost first: a handle's lock bit, a class, a zspage's read-write lock. Whoever
//! holds a class may only *try* the other two: compaction and migration skip what is in use.
//!
//! - The handle bit pins one object: it is held while the object is mapped, freed or moved.
//! - The class lock guards free lists, fullness lists and object headers. It is dropped before
//!   frames are allocated or freed, so that the frame pool can call back for migration.
//! - A zspage's lock is held for reading while any of its objects is mapped, for writing while
//!   one of its frames or objects moves.
//!
//! Files: `class` sizes and chain lengths · `handle` the table of entries · `zspage` chains, their
//! lock and fullness · `bytes` the only `unsafe` · `pool` the front door · `compact` moving objects
//! together · `migrate` the frame pool's callbacks.

mod bytes;
mod class;
mod compact;
mod handle;
mod migrate;
mod pool;
mod zspage;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use class::{MAX_SIZE, SizeClass};
pub use handle::Handle;
pub use pool::{ClassInfo, Mapped, ZsConfig, ZsError, ZsPool, ZsStats};
