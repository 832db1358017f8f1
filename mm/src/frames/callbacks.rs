// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls into owners: the registry of owners, and the mark on threads that are in a callback.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::movable::MovableOps;
use super::page::OwnerId;

thread_local! {
    static INSIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Marks the thread as one that holds a locked frame, until dropped.
pub(super) struct Inside {
    before: bool,
}

impl Inside {
    pub(super) fn enter() -> Self {
        Self { before: INSIDE.replace(true) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.before);
    }
}

/// Whether this thread holds a locked frame: it is in a callback or in [`Owner::with_frame`](super::Owner::with_frame).
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

/// All registered owners. Numbers are never reused: a frame left behind by a dropped owner stays
/// where it is and never belongs to another owner.
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

/// The callbacks of the last owner: neighbouring frames usually have the same one.
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

    /// This may drop the last reference to the previous owner; its `drop` is then a callback like
    /// the others.
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
