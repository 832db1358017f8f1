// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that the balloon borrows from the guest before a park, and what the guest says about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use devices::balloon::Statistics;
use mm::blocks::guest_side::GuestSide;
use mm::units::Pages;

use super::live_guest::{LiveGuest, PATIENCE};

impl LiveGuest {
    /// Asks the guest for statistics and waits for them; `None` if none arrive in time.
    pub(crate) fn fresh_statistics(
        &self,
        deadline: Instant,
        cancel: &AtomicBool,
    ) -> Option<Statistics> {
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let before = self.balloon()?.statistics().updated;
        // If the guest still owes an answer, that one will do.
        self.balloon()?.poll_statistics();
        loop {
            let seen = self.changes.count();
            let told = *self.balloon()?.statistics();
            if told.updated != before {
                return Some(told);
            }
            let now = Instant::now();
            if now >= deadline || cancel.load(Ordering::Acquire) {
                return None;
            }
            self.changes.wait(seen, deadline - now);
        }
    }

    /// Borrows `to` pages on top of the balloon's target instead of `from`, and waits until the guest
    /// has given them or gives no more. Returns what it gave, and whether that was all; `None` if the
    /// target was changed meanwhile, or there is no driver. Single pages count as well: a guest that
    /// can make no more blocks may still have page cache to drop.
    pub(crate) fn lend(
        &self,
        from: Pages,
        to: Pages,
        deadline: Instant,
        cancel: &AtomicBool,
    ) -> Option<(Pages, bool)> {
        let before = self.size()?;
        let goal = {
            let mut balloon = self.balloon().filter(|balloon| balloon.surplus() == from)?;
            balloon.set_surplus(to);
            balloon.goal()
        };
        let size = self.wait_until(Some(deadline), cancel, |size| size.pages >= goal)?;
        if self.lent() != to {
            return None;
        }
        Some((Pages(size.pages.0.saturating_sub(before.pages.0)), size.pages >= goal))
    }

    /// Returns `pages` of the balloon's loan, and waits for a limited time until the guest has taken
    /// them.
    pub(crate) fn return_loan(&self, pages: Pages) {
        self.settle(Pages(self.lent().0.saturating_sub(pages.0)));
    }
}
