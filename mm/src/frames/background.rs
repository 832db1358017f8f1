// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The background thread: reclaims memory and compacts before it is needed, at a limited rate.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::compaction::{CompactEnd, Compaction, Goal};
use super::events::add;
use super::ids::Order;
use super::movable::MigrateMode;
use super::pageblock::Mobility;
use super::pool::FramePool;
use super::reclaim;
use super::wakeup::Wakeup;

/// How much the background thread may do. The caller sets the policy by this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Most frames moved in one run.
    pub frames: u64,
    /// Pause between two runs.
    pub pause: Duration,
    /// Order of the units that it keeps available.
    pub order: Order,
}

impl Default for Pace {
    /// 2 MiB every 10 ms, for blocks: about 2 % of one processor.
    fn default() -> Self {
        Self { frames: 512, pause: Duration::from_millis(10), order: Order::BLOCK }
    }
}

/// The background thread of a pool. Dropping it stops and joins the thread.
pub struct Background {
    wakeup: Arc<Wakeup>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread. It runs when an allocation finds memory low or fragmented, and does
    /// not keep the pool alive.
    ///
    /// # Errors
    /// `AlreadyExists` if the pool has one, or the error of the system if it cannot create a thread.
    pub fn start(pool: &Arc<FramePool>, pace: Pace) -> std::io::Result<Self> {
        let wakeup = Arc::clone(pool.core().wakeup());
        if !wakeup.serve() {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        // From here on its drop marks the thread as ended, even if it never started.
        let mut background = Self { wakeup: Arc::clone(&wakeup), thread: None };
        let weak = Arc::downgrade(pool);
        let thread = std::thread::Builder::new()
            .name("mm-compact".into())
            .spawn(move || serve(&weak, &wakeup, pace))?;
        background.thread = Some(thread);
        Ok(background)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.wakeup.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was already reported.
            let _ = thread.join();
        }
        self.wakeup.stopped();
    }
}

fn serve(pool: &Weak<FramePool>, bell: &Wakeup, pace: Pace) {
    while let Some(order) = bell.wait() {
        let order = order.max(pace.order);
        loop {
            let Some(pool) = pool.upgrade() else { return };
            let core = pool.core();
            add(&core.events().background_runs, 1);
            reclaim::balance(core);
            let goal = Goal::Unit(order, Mobility::Movable);
            let run = Compaction::new(core, goal, MigrateMode::SyncLight);
            let report = run.in_background(pace.frames).run();
            drop(pool);
            if !bell.pause(pace.pause) {
                return;
            }
            if report.end != CompactEnd::Budget {
                break;
            }
        }
    }
}
