// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a request failed.

use crate::frames::AllocError;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZsError {
    /// Objects have 1 to 4096 bytes.
    #[error("invalid object size: {0} bytes (1 to 4096)")]
    Size(usize),
    /// The frame pool has no frame left.
    #[error(transparent)]
    Frames(#[from] AllocError),
    /// The limit set for this pool is reached.
    #[error("the pool's limit of {0} frames is reached")]
    Limit(u32),
    /// All handles of the pool are in use.
    #[error("the pool has no free handle")]
    Handles,
    /// The handle is another pool's, or was never given out.
    #[error("the handle does not belong to this pool")]
    Foreign,
    /// The object was freed.
    #[error("the object is already freed")]
    Freed,
}
