// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! State shared by the thread and its handle.

use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use mm::units::Pages;

use super::limits::Limits;
use super::status::PolicyStatus;

/// Messages to the thread.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) limits: Option<Limits>,
    pub(super) client_target: Option<Pages>,
    pub(super) stop: bool,
}

/// State shared by the thread and its handle.
#[derive(Default)]
pub(super) struct PolicyShared {
    pub(super) orders: Mutex<Orders>,
    pub(super) told: Condvar,
    pub(super) status: Mutex<PolicyStatus>,
    /// A fault found too little room on the host. Set without a lock, by a thread that must not
    /// wait.
    pub(super) shortage: AtomicBool,
}

/// A panic in another thread leaves these consistent: each change is complete.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
