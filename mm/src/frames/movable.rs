// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract between the pool and the owners of movable frames.
//!
//! An owner registers its [`MovableOps`], allocates frames through its [`Owner`](super::Owner) handle, and from
//! then on the pool may move any of them:
//!
//! ```text
//!                 isolate -> true           migrate -> Ok
//!   [movable] ------------------> [isolated] ------------> source released, destination movable
//!       ^                           |    |
//!       |          putback          |    | Owner::free
//!       +---------------------------+    +--------------> dropped by the pool, no putback
//! ```
//!
//! Rules, those of Linux's page migration:
//! - The pool calls `isolate`, `migrate` and `putback` with the frame locked; in `migrate` the
//!   destination is locked too. The owner neither locks nor unlocks.
//! - Between `isolate` and `migrate` or `putback` the frame's linkage belongs to the pool: the
//!   owner must not move the frame between its lists.
//! - The owner may free an isolated frame at any time. The pool notices and drops it; it is
//!   neither migrated nor put back.
//! - `migrate` that fails must leave everything as it was. [`MigrateError::Again`] may be tried
//!   again soon, anything else is final for this attempt; after the last attempt comes `putback`.
//! - `migrate` that succeeds has called [`TargetFrame::adopt`] on the destination and
//!   [`LockedFrame::release`] on the source (or [`TargetFrame::take_over`], which copies and does
//!   both). The pool then only drops its own reference; the last one frees the source.
//! - In [`MigrateMode::Async`] a callback must not wait; in [`MigrateMode::SyncLight`] it may wait
//!   for locks; in [`MigrateMode::Sync`] for anything that ends by itself.
//! - A callback may free frames. It may allocate, but will not be made to compact for it, and it
//!   must not ask for contiguous memory or for the contents of a locked frame
//!   ([`OwnerError::InCallback`](super::OwnerError::InCallback)).
//!
//! An owner that breaks these rules harms itself at most: references are counted by the pool, so
//! a frame is never freed while another thread has a reference. A callback that panics counts as one that
//! failed, is reported in the log, and shows in [`Events::ops_panicked`](super::Events).

use super::ids::FrameId;
use super::page::{OwnerId, Word};
use super::space::FrameSpace;
use super::token::PoolId;

/// How much a migration may cost its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrateMode {
    /// Never wait.
    Async,
    /// Wait for locks that are held briefly.
    SyncLight,
    /// Wait for anything that ends by itself.
    Sync,
}

/// Why a frame was not migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// In use now; worth another attempt.
    #[error("the frame is busy, try again")]
    Again,
    /// Cannot be moved; do not try again now.
    #[error("the frame cannot be moved")]
    Busy,
    /// The frame is not what its owner expected.
    #[error("the frame does not belong to this owner")]
    Unknown,
}

/// What an owner of movable frames implements. See the module's text for the rules.
pub trait MovableOps: Send + Sync {
    /// Prepares `frame` for migration. `false` if it cannot be moved now.
    fn isolate(&self, frame: &LockedFrame<'_>, mode: MigrateMode) -> bool;

    /// Moves contents and ownership from `src` to `dst`.
    ///
    /// # Errors
    /// [`MigrateError::Again`] for a temporary failure; nothing may have changed.
    fn migrate(
        &self,
        dst: &mut TargetFrame<'_>,
        src: &mut LockedFrame<'_>,
        mode: MigrateMode,
    ) -> Result<(), MigrateError>;

    /// Takes back an isolated frame that was not moved.
    fn putback(&self, frame: &LockedFrame<'_>);
}

/// A movable frame that the pool has locked, as callbacks see it.
pub struct LockedFrame<'p> {
    space: &'p FrameSpace,
    id: FrameId,
    owner: OwnerId,
    private: u32,
}

impl<'p> LockedFrame<'p> {
    /// `word` is the frame's word after it was locked.
    pub(super) fn new(space: &'p FrameSpace, id: FrameId, word: Word) -> Self {
        Self { space, id, owner: word.owner(), private: word.private() }
    }
}

impl LockedFrame<'_> {
    /// Which frame it is.
    #[must_use]
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// The owner's word, as given to [`Owner::alloc`](super::Owner::alloc).
    #[must_use]
    pub fn private(&self) -> u32 {
        self.private
    }

    /// Whether the frame belongs to owner `owner` of pool `pool`.
    pub(super) fn is_owned_by(&self, owner: OwnerId, pool: PoolId) -> bool {
        self.owner == owner && self.space.id() == pool
    }

    /// Clears the movable mark and drops the owner's reference: the frame no longer belongs to the
    /// owner. `false` if it already did not.
    pub fn release(&mut self) -> bool {
        // Never the last reference: the pool holds one until the callback returns.
        self.space.meta(self.id).disown(self.owner).is_some()
    }
}

/// The destination of a migration: an empty frame that the pool has locked.
pub struct TargetFrame<'p> {
    space: &'p FrameSpace,
    id: FrameId,
    owner: OwnerId,
    adopted: bool,
}

impl<'p> TargetFrame<'p> {
    pub(super) fn new(space: &'p FrameSpace, id: FrameId, owner: OwnerId) -> Self {
        Self { space, id, owner, adopted: false }
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.adopted
    }
}

impl TargetFrame<'_> {
    /// Which frame it is.
    #[must_use]
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// Copies the source's 4 KiB. The owner keeps its writers away from the source during the copy.
    ///
    /// # Panics
    /// If the source is the target itself or lies in another pool.
    pub fn copy_from(&mut self, src: &LockedFrame<'_>) {
        assert_eq!(self.space.id(), src.space.id(), "frames of two pools");
        self.space.copy_frame(self.id, src.id);
    }

    /// Makes the destination the owner's, movable, with `private` as the owner's word.
    ///
    /// # Panics
    /// In debug builds, if called twice.
    pub fn adopt(&mut self, private: u32) {
        debug_assert!(!self.adopted, "adopted twice");
        if !self.adopted {
            self.space.meta(self.id).adopt_locked(self.owner, private);
            self.adopted = true;
        }
    }

    /// The whole of a simple migration: copies, adopts under the source's word, releases the
    /// source.
    ///
    /// # Errors
    /// [`MigrateError::Unknown`] if the source is no longer the owner's.
    pub fn take_over(&mut self, src: &mut LockedFrame<'_>) -> Result<(), MigrateError> {
        self.copy_from(src);
        if !src.release() {
            return Err(MigrateError::Unknown);
        }
        self.adopt(src.private());
        Ok(())
    }
}
