// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The background thread: asks for memory and compacts ahead of need, within a budget.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::compaction::{CompactEnd, Compaction, Goal};
use super::ids::Order;
use super::movable::MigrateMode;
use super::pageblock::Mobility;
use super::pool::FramePool;
use super::stats::add;

/// How much the background thread may do. A value, so that policy stays with the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Frames moved in one go, at most.
    pub frames: u64,
    /// Pause between two goes.
    pub pause: Duration,
    /// Order of the units that it keeps available.
    pub order: Order,
}

impl Default for Budget {
    /// 2 MiB every 10 ms, for blocks: about 2 % of one processor.
    fn default() -> Self {
        Self { frames: 512, pause: Duration::from_millis(10), order: Order::BLOCK }
    }
}

#[derive(Default)]
struct State {
    wanted: Option<Order>,
    /// A thread serves the pool.
    served: bool,
    stop: bool,
}

/// Where allocations leave word for the thread.
#[derive(Default)]
pub(super) struct Wakeup {
    state: Mutex<State>,
    changed: Condvar,
}

impl Wakeup {
    /// Asks for units of `order`. Cheap when nobody listens.
    pub(super) fn wake(&self, order: Order) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.wanted.is_none_or(|o| o < order) {
            state.wanted = Some(order);
            self.changed.notify_one();
        }
    }

    /// Whether nobody served the pool before.
    fn serve(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut state.served, true)
    }

    fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_all();
    }

    /// The thread has ended, and another may begin.
    fn stopped(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.served, state.stop) = (false, false);
    }

    /// Waits for work; `None` when it is time to end.
    fn wait(&self) -> Option<Order> {
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
    fn pause(&self, pause: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, pause, |s| !s.stop)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }
}

/// The background thread of a pool. Ends, and is waited for, when dropped.
pub struct Background {
    wakeup: Arc<Wakeup>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread. It works when an allocation finds memory low or broken up, and does
    /// not keep the pool alive.
    ///
    /// # Errors
    /// `AlreadyExists` if the pool has one, and whatever the system says that has none to give.
    pub fn start(pool: &Arc<FramePool>, budget: Budget) -> std::io::Result<Self> {
        let wakeup = Arc::clone(&pool.wakeup);
        if !wakeup.serve() {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        // From here on dropping it says that the thread has ended, if it ever began.
        let mut background = Self { wakeup: Arc::clone(&wakeup), thread: None };
        let weak = Arc::downgrade(pool);
        let thread = std::thread::Builder::new()
            .name("mm-compact".into())
            .spawn(move || serve(&weak, &wakeup, budget))?;
        background.thread = Some(thread);
        Ok(background)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.wakeup.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been reported where it happened.
            let _ = thread.join();
        }
        self.wakeup.stopped();
    }
}

fn serve(pool: &Weak<FramePool>, bell: &Wakeup, budget: Budget) {
    while let Some(order) = bell.wait() {
        let order = order.max(budget.order);
        loop {
            let Some(pool) = pool.upgrade() else { return };
            add(&pool.events.background_runs, 1);
            pool.balance();
            let goal = Goal::Unit(order, Mobility::Movable);
            let run = Compaction::new(&pool, goal, MigrateMode::SyncLight);
            let report = run.in_background(budget.frames).run();
            drop(pool);
            if !bell.pause(budget.pause) {
                return;
            }
            if report.end != CompactEnd::Budget {
                break;
            }
        }
    }
}
