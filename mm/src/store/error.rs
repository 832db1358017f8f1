// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a request to a store failed.

use super::codec::CodecError;
use crate::frames::PoolError;
use crate::zsmalloc::ZsError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not below the store's capacity.
    #[error("key {key} is out of range: the store has {capacity} keys")]
    OutOfRange {
        /// The key.
        key: u32,
        /// Number of keys of the store.
        capacity: u32,
    },
    /// Nothing is stored under the key.
    #[error("no page is stored under key {0}")]
    Absent(u32),
    /// There is no room for the page.
    #[error(transparent)]
    NoRoom(#[from] ZsError),
    /// The codec failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The frame pool takes no more owners.
    #[error(transparent)]
    Pool(#[from] PoolError),
}
