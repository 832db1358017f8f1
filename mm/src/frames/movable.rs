// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract between the pool and the owners of movable frames.
//!
//! An owner registers its [`MovableOps`], allocates frames through its [`Owner`] handle, and from
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
//!   owner must not move the frame between lists of its own.
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
//!   ([`OwnerError::InCallback`]).
//!
//! An owner that breaks these rules harms itself at most: references are counted by the pool, so
//! a frame is never freed under anybody who holds it. A callback that panics counts as one that
//! failed, is reported in the log, and shows in [`Events::ops_panicked`](super::Events).

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::ids::{FRAME_SIZE, FrameId};
use super::page::{FrameMeta, OwnerId, PinError};
use super::pool::{AllocError, FramePool, Frames, Gfp};
use super::sync::Backoff;

/// How much a migration may cost its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrateMode {
    /// Never wait.
    Async,
    /// Wait for locks that are held briefly.
    SyncLight,
    /// Wait for whatever ends by itself.
    Sync,
}

/// Why a frame was not migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// In use just now; worth another try.
    #[error("the frame is busy, try again")]
    Again,
    /// Cannot be moved; do not try again now.
    #[error("the frame cannot be moved")]
    Busy,
    /// The frame is not what its owner expected.
    #[error("the owner does not know the frame")]
    Unknown,
}

/// What an owner of movable frames implements. See the module's text for the rules.
pub trait MovableOps: Send + Sync {
    /// Prepares `frame` for being moved. `false` if it cannot be moved just now.
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
    pub(super) pool: &'p FramePool,
    pub(super) id: FrameId,
    pub(super) owner: OwnerId,
    pub(super) private: u32,
}

impl LockedFrame<'_> {
    /// Which frame it is.
    #[must_use]
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// The owner's word, as given to [`Owner::alloc`].
    #[must_use]
    pub fn private(&self) -> u32 {
        self.private
    }

    /// Whether the frame is `owner`'s. Callbacks that hand out memory by frame numbers of their
    /// own must ask: they can be registered with another pool, or called by another owner's.
    #[must_use]
    pub fn belongs_to(&self, owner: &Owner) -> bool {
        self.owner == owner.id && self.pool.id() == owner.pool.id()
    }

    /// Clears the movable mark and drops the owner's reference: the frame is no longer the
    /// owner's. `false` if it was not any more.
    pub fn release(&mut self) -> bool {
        // Never the last reference: the pool holds one until the callback returns.
        self.pool.meta(self.id).disown(self.owner).is_some()
    }
}

/// The destination of a migration: an empty frame that the pool has locked.
pub struct TargetFrame<'p> {
    pub(super) pool: &'p FramePool,
    pub(super) id: FrameId,
    pub(super) owner: OwnerId,
    pub(super) adopted: bool,
}

impl TargetFrame<'_> {
    /// Which frame it is.
    #[must_use]
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// Copies the source's 4 KiB. The owner keeps its own writers away from the source meanwhile.
    pub fn copy_from(&mut self, src: &LockedFrame<'_>) {
        assert_eq!(self.pool.id(), src.pool.id(), "frames of two pools");
        self.pool.copy_frame(self.id, src.id);
    }

    /// Makes the destination the owner's, movable, with `private` as the owner's word.
    ///
    /// # Panics
    /// In debug builds, if called twice.
    pub fn adopt(&mut self, private: u32) {
        debug_assert!(!self.adopted, "adopted twice");
        if !self.adopted {
            self.pool.meta(self.id).adopt_locked(self.owner, private);
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

/// Why an owner's request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// The frame is not in the pool, not movable, or another owner's: a foreign handle or a
    /// double free.
    #[error("{0:?} is not this owner's")]
    NotOwned(FrameId),
    /// Only single frames can be movable.
    #[error("only single frames can be movable")]
    NotSingle,
    /// The frames belong to another pool.
    #[error("the frames belong to another pool")]
    Foreign,
    /// The frame is isolated or locked and cannot be taken back just now.
    #[error("{0:?} is being moved")]
    Moving(FrameId),
    /// The frame is locked, and waiting for it here might never end.
    #[error("{0:?} is locked, and the caller is in a callback or holds another frame")]
    InCallback(FrameId),
}

/// An owner's access to a pool: allocates, frees and reads its movable frames.
pub struct Owner {
    pool: Arc<FramePool>,
    id: OwnerId,
}

impl Owner {
    pub(super) fn new(pool: Arc<FramePool>, id: OwnerId) -> Self {
        Self { pool, id }
    }

    /// The pool the frames come from.
    #[must_use]
    pub fn pool(&self) -> &Arc<FramePool> {
        &self.pool
    }

    /// Allocates a frame and makes it movable. `private` is the owner's own, to find its
    /// structures by in the callbacks.
    ///
    /// # Errors
    /// As [`FramePool::alloc`].
    pub fn alloc(&self, gfp: Gfp, private: u32) -> Result<FrameId, AllocError> {
        let frames = self.pool.alloc(super::Order::ZERO, gfp)?;
        let (frame, _) = frames.into_parts();
        self.pool.meta(frame).adopt(self.id, private);
        Ok(frame)
    }

    /// Makes an allocated frame movable.
    ///
    /// # Errors
    /// [`OwnerError::NotSingle`] or [`OwnerError::Foreign`], with the frames.
    pub fn adopt(&self, frames: Frames, private: u32) -> Result<FrameId, (OwnerError, Frames)> {
        if !self.pool.owns(&frames) {
            return Err((OwnerError::Foreign, frames));
        }
        if frames.order() != super::Order::ZERO {
            return Err((OwnerError::NotSingle, frames));
        }
        let (frame, _) = frames.into_parts();
        self.pool.meta(frame).adopt(self.id, private);
        Ok(frame)
    }

    /// Gives a frame back. If it is isolated, the pool drops it as soon as it notices.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`].
    pub fn free(&self, frame: FrameId) -> Result<(), OwnerError> {
        let meta = self.pool.get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        match meta.disown(self.id) {
            Some(true) => self.pool.free_single(frame),
            Some(false) => {}
            None => return Err(OwnerError::NotOwned(frame)),
        }
        Ok(())
    }

    /// Makes a frame unmovable again and returns it as an ordinary allocation.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`], or [`OwnerError::Moving`] while it is isolated or locked.
    pub fn reclaim(&self, frame: FrameId) -> Result<Frames, OwnerError> {
        let meta = self.pool.get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        if meta.reclaim(self.id) {
            return Ok(self.pool.token(frame, super::Order::ZERO));
        }
        let word = meta.load();
        if word.is_movable() && word.owner() == self.id {
            Err(OwnerError::Moving(frame))
        } else {
            Err(OwnerError::NotOwned(frame))
        }
    }

    /// Changes the owner's word of a frame.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`].
    pub fn set_private(&self, frame: FrameId, private: u32) -> Result<(), OwnerError> {
        let meta = self.pool.get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        if meta.set_private(self.id, private) { Ok(()) } else { Err(OwnerError::NotOwned(frame)) }
    }

    /// Runs `f` on the contents of a frame, which can neither move nor go away meanwhile.
    /// Concurrent calls for one frame wait for each other. Inside `f` the pool neither compacts
    /// for this thread nor makes it wait for a frame: the frame held could be the one waited for.
    ///
    /// # Errors
    /// [`OwnerError::NotOwned`] or [`OwnerError::InCallback`].
    pub fn with_frame<R>(
        &self,
        frame: FrameId,
        f: impl FnOnce(&mut [u8; FRAME_SIZE]) -> R,
    ) -> Result<R, OwnerError> {
        let meta = self.pool.get_meta(frame).ok_or(OwnerError::NotOwned(frame))?;
        let mut backoff = Backoff::new();
        loop {
            match meta.try_pin(self.id) {
                Ok(()) => break,
                Err(PinError::NotOwned) => return Err(OwnerError::NotOwned(frame)),
                Err(PinError::Locked) if holds_frame() => {
                    return Err(OwnerError::InCallback(frame));
                }
                Err(PinError::Locked) => backoff.snooze(),
            }
        }
        let pin = Pin { pool: &self.pool, meta, frame };
        let _inside = Inside::enter();
        Ok(f(pin.pool.locked_bytes(pin.frame)))
    }
}

/// Unlocks and puts a frame, also when the owner's closure panics.
struct Pin<'a> {
    pool: &'a FramePool,
    meta: &'a FrameMeta,
    frame: FrameId,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if self.meta.unlock_put() {
            self.pool.free_single(self.frame);
        }
    }
}

thread_local! {
    static INSIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Marks the thread as one that holds a locked frame, until dropped.
struct Inside {
    before: bool,
}

impl Inside {
    fn enter() -> Self {
        Self { before: INSIDE.replace(true) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.before);
    }
}

/// Whether this thread holds a locked frame: it is in a callback or in [`Owner::with_frame`].
pub(super) fn holds_frame() -> bool {
    INSIDE.get()
}

/// Calls into an owner: marks the thread and turns a panic into `None`.
pub(super) fn call<R>(f: impl FnOnce() -> R) -> Option<R> {
    let _inside = Inside::enter();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
        .inspect_err(|_| tracing::error!("a frame owner's migration callback panicked"))
        .ok()
}

/// All registered owners. Numbers are never reused: a frame left behind by an owner that is gone
/// stays where it is rather than become another owner's.
#[derive(Default)]
pub(super) struct Registry(RwLock<Vec<Weak<dyn MovableOps>>>);

impl Registry {
    pub(super) fn register(&self, ops: Weak<dyn MovableOps>) -> Option<OwnerId> {
        let mut owners = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let id = u16::try_from(owners.len()).ok()?;
        owners.push(ops);
        Some(OwnerId(id))
    }

    fn get(&self, id: OwnerId) -> Option<Arc<dyn MovableOps>> {
        let owners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        owners.get(usize::from(id.0))?.upgrade()
    }
}

/// The callbacks of the owner met last: neighbouring frames mostly have the same.
#[derive(Default)]
pub(super) struct OpsCache(Option<(OwnerId, Arc<dyn MovableOps>)>);

impl OpsCache {
    pub(super) fn get(&mut self, registry: &Registry, id: OwnerId) -> Option<&dyn MovableOps> {
        if self.0.as_ref().is_none_or(|(cached, _)| *cached != id) {
            let ops = registry.get(id)?;
            self.replace(Some((id, ops)));
        }
        self.0.as_ref().map(|(_, ops)| &**ops)
    }

    /// The one before may have lost all its other users meanwhile: then it ends here, and its
    /// `drop` is a callback like the others.
    fn replace(&mut self, new: Option<(OwnerId, Arc<dyn MovableOps>)>) {
        if let Some(before) = std::mem::replace(&mut self.0, new) {
            call(move || drop(before));
        }
    }
}

impl Drop for OpsCache {
    fn drop(&mut self) {
        self.replace(None);
    }
}
