// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running guest, for trimming: through its balloon.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mm::units::{Bytes, Pages};

use super::trim::{Gave, TrimFigures, TrimGuest};
use crate::compactor::LiveGuest;

/// How long the guest may take for all of it.
const LIMIT: Duration = Duration::from_secs(20);

/// A guest with a limited time.
pub(super) struct LiveTrim<'a> {
    guest: &'a LiveGuest,
    deadline: Instant,
}

impl<'a> LiveTrim<'a> {
    /// The time begins now.
    pub(super) fn new(guest: &'a LiveGuest) -> Self {
        Self { guest, deadline: Instant::now() + LIMIT }
    }
}

impl TrimGuest for LiveTrim<'_> {
    fn memory(&self) -> Bytes {
        self.guest.ram().pages().bytes()
    }

    fn borrowed(&self) -> Result<Pages, String> {
        let look = self.guest.with_balloon(|balloon| {
            if !balloon.is_active() {
                return Err("the guest's balloon driver is not running");
            }
            if !balloon.deflates_on_oom() {
                return Err("the balloon has no deflate_on_oom, which protects the guest");
            }
            if balloon.stats_interval().is_zero() {
                return Err("the balloon has no statistics (stats_polling_interval_s)");
            }
            Ok(balloon.surplus())
        });
        look.unwrap_or(Err("the machine has no balloon")).map_err(str::to_owned)
    }

    fn ask(&self, cancel: &AtomicBool) -> Option<TrimFigures> {
        let told = self.guest.fresh_statistics(self.deadline, cancel)?;
        Some(TrimFigures {
            available: Bytes(told.available_memory?),
            kills: told.oom_kill.unwrap_or(0),
            swapped_in: told.swap_in.unwrap_or(0),
            major_faults: told.major_faults.unwrap_or(0),
        })
    }

    fn borrow(&self, from: Pages, to: Pages, cancel: &AtomicBool) -> Option<Gave> {
        let (pages, all) = self.guest.lend(from, to, self.deadline, cancel)?;
        let short = match all {
            true => None,
            false if Instant::now() >= self.deadline => Some("there was no more time"),
            false => Some("the guest gives no more"),
        };
        Some(Gave { pages, short })
    }

    fn give_back(&self, pages: Pages) {
        self.guest.return_loan(pages);
    }
}
