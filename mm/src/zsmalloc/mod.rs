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
//! Lock order, outermost first: a handle's lock bit, a class, a zspage's read-write lock. A holder
//! of a class lock may only *try* the other two: compaction and migration skip objects in use.
//!
//! - The handle bit pins one object: it is held while the object is mapped, freed or moved.
//! - The class lock guards free lists, fullness lists and object headers. It is dropped before
//!   frames are allocated or freed, so that the frame pool can call back for migration.
//! - A zspage's lock is held for reading while any of its objects is mapped, for writing while
//!   one of its frames or objects moves.
//!
//! Arrows between files go down this list only:
//!
//! - `pool.rs` the front door, [`ZsPool`]
//! - `compact.rs` moves objects together · `migrate.rs` replaces frames · `validate.rs` recounts
//! - `heap.rs` the state of a pool, below all operations; allocates and frees
//! - `chain.rs` makes zspages of frames and frees them · `objects.rs` objects of a zspage ·
//!   `lists.rs` a class: its lock, its zspages by fullness · `mapped.rs` the bytes of an object
//! - `supply.rs` frames within the limit · `handles.rs` all entries · `zspages.rs` all zspages
//! - `bytes.rs` raw access · `handle.rs` one entry · `zspage.rs` one chain, its lock and fullness ·
//!   `table.rs` grows and never moves · `class.rs` sizes and chain lengths · `config.rs`,
//!   `error.rs`, `stats.rs` what goes in and out
//!
//! `loom_tests.rs` model checks · `tests/` everything else. `unsafe` is in `bytes`, and where
//! `mapped` and `compact` keep its conditions.

mod bytes;
mod chain;
mod class;
mod compact;
mod config;
mod error;
mod handle;
mod handles;
mod heap;
mod lists;
mod mapped;
mod migrate;
mod objects;
mod pool;
mod stats;
mod supply;
mod table;
mod validate;
mod zspage;
mod zspages;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use class::{MAX_SIZE, SizeClass};
pub use config::ZsConfig;
pub use error::ZsError;
pub use handle::Handle;
pub use mapped::Mapped;
pub use pool::ZsPool;
pub use stats::{ClassInfo, ZsStats};
