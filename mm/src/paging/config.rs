// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How guest memory is paged, and why it cannot be.

use std::io;
use std::sync::Arc;

use crate::backing::BackingError;
use crate::store::Codec;
use crate::sys::userfault::UserfaultError;
use crate::units::Bytes;

use super::page_pool::PagePoolError;
use super::room::RoomSource;
use super::source::PageSource;

/// Why guest memory cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum PagingError {
    /// The host does not permit it, or its kernel is too old.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// Pages of this kind of backing cannot be moved out.
    #[error("guest memory of this kind cannot be parked: {0}")]
    Backing(&'static str),
    /// The pool of compressed pages cannot be made.
    #[error("cannot create the page pool: {0}")]
    Pool(#[from] PagePoolError),
    /// Guest memory does not take the advice.
    #[error("cannot prepare guest memory: {0}")]
    Prepare(#[source] io::Error),
    /// The host refused an allocation.
    #[error(transparent)]
    Ram(#[from] BackingError),
    /// Blocks that are to be read from a file are in use.
    #[error("guest memory is already in use: attach the source before the first access")]
    InUse,
}

/// How guest memory is paged.
pub struct PagingConfig {
    /// Most memory that compressed pages may take.
    pub pool_limit: Bytes,
    /// Most mappings that absent blocks may cost the process.
    pub max_mappings: usize,
    /// How they are compressed.
    pub codec: Box<dyn Codec>,
    /// The codec that [recompresses](super::Paging::repack) pages that stay absent for long, if any.
    pub second_codec: Option<Box<dyn Codec>>,
    /// Further sources, for blocks that are [attached](super::Paging::attach) to them.
    pub sources: Vec<Arc<dyn PageSource>>,
    /// The host whose room bounds what comes back; nothing does if `None`.
    pub host: Option<Box<dyn RoomSource>>,
}
