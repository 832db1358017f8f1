// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A store of compressed 4 KiB pages, by key.
//!
//! A page of one repeated word is stored as that word, an incompressible page unchanged, any other
//! page compressed by a [`Codec`], in [`crate::zsmalloc`]. All of it lies in movable frames that
//! may come from CMA, so the store never blocks contiguous allocation.
//!
//! Arrows between files go down this list only:
//!
//! - `repack.rs` compressing again with a second codec
//! - `page_store.rs` the front door, [`Store`]
//! - `bundle.rs` what the second codec compresses
//! - `workers.rs` codec workers, one more than processors · `stat.rs` statistics
//! - `slot_table.rs` slots by key · `error.rs` [`StoreError`]
//! - `slot.rs` what is kept under a key · `codec.rs` the trait [`Codec`], LZ4 and Zstandard
//!
//! `tests/` against a model, with threads, and with bad input.

mod bundle;
mod codec;
mod error;
mod page_store;
mod repack;
mod slot;
mod slot_table;
mod stat;
mod workers;

#[cfg(all(test, not(loom), not(miri)))]
mod tests;

pub use codec::{Codec, CodecError, CodecWorker, Lz4, Zstd};
pub use error::StoreError;
pub use page_store::{Page, Store, StoreConfig};
pub use slot_table::Key;
pub use stat::MmStat;
