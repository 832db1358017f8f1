// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the thread and its handle share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use mm::units::Pages;

use super::limits::Limits;
use super::status::PolicyStatus;

/// What the thread is told.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) limits: Option<Limits>,
    pub(super) client_target: Option<Pages>,
    pub(super) stop: bool,
}

/// What the thread and its handle share.
#[derive(Default)]
pub(super) struct PolicyShared {
    pub(super) orders: Mutex<Orders>,
    pub(super) told: Condvar,
    pub(super) status: Mutex<PolicyStatus>,
}

/// A panic elsewhere leaves these as they are: each change is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
