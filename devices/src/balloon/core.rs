// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all queues of a balloon work on.

use mm::units::Pages;

use super::journal::Journal;
use super::migrations::Migrations;
use super::pool::Pool;
use super::target::Target;

/// The balloon without its queues.
pub(super) struct Core {
    /// The pages in it, and the memory behind them.
    pub(super) pool: Pool,
    /// What the driver is to reach.
    pub(super) target: Target,
    /// Which buffers were halves of migrations.
    pub(super) migrations: Migrations,
    /// Counters and the log.
    pub(super) journal: Journal,
}

impl Core {
    /// An empty balloon with no target.
    pub(super) fn new(pool: Pool) -> Self {
        let target = Target::new(pool.ledger.ram());
        Self { pool, target, migrations: Migrations::default(), journal: Journal::default() }
    }

    /// To be called after pages went in, with how many there were before: once the guest has given
    /// all that it was asked for, nothing waits for more.
    ///
    /// A migration ends no wait: its page is one too many until the other half comes.
    pub(super) fn check_goal(&mut self, before: Pages) {
        let goal = self.target.goal();
        if before < goal && self.pool.ledger.ballooned() >= goal {
            self.pool.hurry();
        }
    }
}
