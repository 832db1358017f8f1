// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A store of compressed 4 KiB pages, by key.
//!
//! A page of one repeated word is kept as that word, a page that does not compress as it is, any
//! other as what a [`Codec`] makes of it, in [`crate::zsmalloc`]. All of it lies in movable frames
//! that may come from CMA, so the store never stands in the way of contiguous memory.
//!
//! Files: `codec` the trait, LZ4 and Zstandard · `page_store` the store and its statistics.

mod codec;
mod page_store;

#[cfg(all(test, not(loom), not(miri)))]
mod tests;

pub use codec::{Codec, CodecError, Lz4, Worker, Zstd};
pub use page_store::{Key, MmStat, Page, Store, StoreConfig, StoreError};
