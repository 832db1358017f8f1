// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! State shared by all queues of a balloon.

use mm::units::Pages;

use super::event_journal::EventJournal;
use super::migrations::Migrations;
use super::pool::Pool;
use super::target::BalloonTarget;

/// The balloon without its queues.
pub(super) struct BalloonCore {
    /// The pages in it, and the memory behind them.
    pub(super) pool: Pool,
    /// The size that the driver should reach.
    pub(super) target: BalloonTarget,
    /// Which buffers were halves of migrations.
    pub(super) migrations: Migrations,
    /// Counters and the log.
    pub(super) journal: EventJournal,
}

impl BalloonCore {
    /// An empty balloon with no target.
    pub(super) fn new(pool: Pool) -> Self {
        let target = BalloonTarget::new(pool.ledger.ram());
        Self { pool, target, migrations: Migrations::default(), journal: EventJournal::default() }
    }

    /// Called after pages went in, with the previous number of pages: once the guest has reached
    /// the goal, pending pages do not wait any longer.
    ///
    /// A migration does not end the wait: it exceeds the goal by one page until its second half
    /// arrives.
    pub(super) fn check_goal(&mut self, before: Pages) {
        let goal = self.target.goal();
        if before < goal && self.pool.ledger.ballooned() >= goal {
            self.pool.hurry();
        }
    }
}
