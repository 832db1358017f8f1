// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! zsmalloc: packs objects of 1 to 4096 bytes tightly into movable frames.
//!
//! Objects of similar size share a *zspage*, a chain of one to eight frames chosen so that little
//! is left over at its end; an object may lie across two frames of the chain. What the user holds
//! is a [`Handle`], which stays valid while objects move between zspages (compaction) and while
//! frames move in the pool (migration). Uses [`crate::frames`] and nothing else of this crate.
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
//! Front: `pool` the front door · `mapped` the bytes of an object · `validate` the recount.
//! Mechanism: `class` sizes and chain lengths · `handle` the table of entries · `zspage` one chain,
//! its lock and fullness · `chain` making and giving back · `lists` zspages by fullness · `objects`
//! in them · `bytes` raw access · `compact` moving objects together · `migrate` the frame pool's
//! callbacks. `unsafe` is in `bytes`, and where `mapped` and `compact` keep its conditions.

mod bytes;
mod chain;
mod class;
mod compact;
mod handle;
mod lists;
mod mapped;
mod migrate;
mod objects;
mod pool;
mod validate;
mod zspage;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use class::{MAX_SIZE, SizeClass};
pub use handle::Handle;
pub use mapped::Mapped;
pub use pool::{ClassInfo, ZsConfig, ZsError, ZsPool, ZsStats};
