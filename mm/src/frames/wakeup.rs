// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How allocations wake the background thread.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::ids::Order;

#[derive(Default)]
struct WakeupState {
    wanted: Option<Order>,
    /// A thread serves the pool.
    served: bool,
    stop: bool,
}

/// Requests of allocations to the background thread.
#[derive(Default)]
pub(super) struct Wakeup {
    state: Mutex<WakeupState>,
    changed: Condvar,
}

impl Wakeup {
    /// Asks for units of `order`. Cheap when no thread serves the pool.
    pub(super) fn wake(&self, order: Order) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.wanted.is_none_or(|o| o < order) {
            state.wanted = Some(order);
            self.changed.notify_one();
        }
    }

    /// Registers the serving thread; `false` if the pool has one.
    pub(super) fn serve(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut state.served, true)
    }

    pub(super) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_all();
    }

    /// The thread has ended, and another may begin.
    pub(super) fn stopped(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.served, state.stop) = (false, false);
    }

    /// Waits for work; `None` when it is time to end.
    pub(super) fn wait(&self) -> Option<Order> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stop {
                return None;
            }
            if let Some(order) = state.wanted.take() {
                return Some(order);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits out a pause; `false` when it is time to end.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, pause, |s| !s.stop)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}
