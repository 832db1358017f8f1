// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands, by subject. Each takes the parts of the device that it needs, and
//! checks everything before it changes anything. Long ones are a [`Job`] that a deadline can cut.
//!
//! - `image2d.rs`: 2D resources, transfers to them, detaching
//! - `build.rs`: entries of guest memory become the backing of an image or a blob
//! - `blob.rs`: blobs in host memory, and the window
//! - `flush.rs`: what scanouts show, flushes
//! - `cursor.rs`: the image of the mouse pointer, and its place
//! - `disposal.rs`: dropped resources, whose memory is freed in steps

pub(super) mod blob;
mod build;
pub(super) mod cursor;
mod disposal;
pub(super) mod flush;
pub(super) mod image2d;

pub(super) use build::Build;
pub(super) use cursor::CursorJob;
pub(super) use disposal::Disposal;
pub(super) use flush::Flushing;
pub(super) use image2d::TransferJob;

use super::migrate::{Batch, Migration};
use super::protocol::ResourceId;
use super::response::Fault;

/// A command that may take several rounds.
pub(super) enum Job {
    /// TRANSFER_TO_HOST_2D.
    Transfer(TransferJob),
    /// RESOURCE_FLUSH.
    Flush(Flushing),
    /// UPDATE_CURSOR.
    Cursor(CursorJob),
    /// RESOURCE_ATTACH_BACKING, RESOURCE_CREATE_BLOB of guest memory.
    Build(Build),
    /// RESOURCE_MIGRATE_BACKING.
    Migrate(ResourceId, Migration),
    /// MIGRATE_PAGES.
    MigrateBatch(Batch),
    /// The command is decided, and what it leaves behind is being freed: the resource of
    /// RESOURCE_UNREF, the backing of RESOURCE_DETACH_BACKING or of a build that failed.
    Dispose(Result<(), Fault>),
}
