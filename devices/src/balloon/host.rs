// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host asks of its balloon. Called on the event-loop thread, like the queues.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mm::blocks::page_set::PageSet;
use mm::guest_ram::GuestRamError;
use mm::range_set::RangeSet;
use mm::units::{BlockId, GuestRange, Pages};

use super::counters::Counters;
use super::device::Balloon;
use super::evacuate::EvacuationDone;
use super::hinting::HintingStatus;
use super::ledger::Fill;
use super::protocol::feature;
use super::reclaim::Discarded;
use super::stats::Statistics;
use super::{BalloonConfig, BalloonError};

impl Balloon {
    /// Asks the guest to have `target` pages in the balloon; it follows in its own time.
    ///
    /// May be called while it is still on its way to another target.
    pub fn set_target(&mut self, target: Pages) -> Result<(), BalloonError> {
        let ram = self.pool.ledger.ram();
        let too_large = BalloonError::TargetTooLarge { target, ram };
        if target > ram {
            return Err(too_large);
        }
        let pages = u32::try_from(target.0).map_err(|_| too_large)?;
        self.surplus = Pages(0);
        self.set_goal(pages);
        Ok(())
    }

    /// Pages that the host wants in the balloon.
    pub fn target_pages(&self) -> Pages {
        Pages(self.goal().0.saturating_sub(self.surplus.0))
    }

    /// Pages that the driver is asked for on top of the target: those of evacuated blocks, and what
    /// [`set_surplus`](Self::set_surplus) said.
    pub fn surplus(&self) -> Pages {
        self.surplus
    }

    /// Borrows memory from the guest for a while: the driver is to have `surplus` pages in the
    /// balloon on top of the target, blocks first. A lower surplus gives memory back, single pages
    /// first. Limited to what RAM there is; the next target ends it.
    pub fn set_surplus(&mut self, surplus: Pages) {
        let target = self.target_pages();
        let goal = target.0.saturating_add(surplus.0).min(self.pool.ledger.ram().0);
        let Ok(goal) = u32::try_from(goal) else { return };
        self.surplus = Pages(u64::from(goal) - target.0);
        self.set_goal(goal);
    }

    /// Has the driver reach `pages`.
    fn set_goal(&mut self, pages: u32) {
        if pages == self.config.num_pages.get() {
            return;
        }
        self.config.num_pages = pages.into();
        // A lower one may be reached already: nothing more will come.
        if self.pool.ledger.ballooned() >= self.goal() {
            self.pool.hurry();
            self.set_timer();
        }
        self.tell_driver();
    }

    /// Pages that the driver says are in it. See [`ballooned`](Self::ballooned) for what is so.
    pub fn actual(&self) -> Pages {
        Pages(self.config.actual.get().into())
    }

    /// Pages that are in it by the device's own record.
    pub fn ballooned(&self) -> Pages {
        self.pool.ledger.ballooned()
    }

    /// Pages in the balloon that the host has not been given back yet.
    pub fn pending(&self) -> Pages {
        self.pool.ledger.pending()
    }

    /// The pages of the balloon. Nothing else in guest RAM may be taken for free.
    pub fn ballooned_ranges(&self) -> RangeSet {
        self.pool.ledger.ranges()
    }

    /// What the guest told last of its memory.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Asks the guest for statistics now. Whether it was asked: it may still owe an answer.
    pub fn poll_statistics(&mut self) -> bool {
        let asked = self.return_stats_buffer();
        if !asked && self.accepted(feature::STATS_VQ) {
            self.pool.counters.stats_update_fails += 1;
        }
        asked
    }

    /// How often statistics are asked for; zero if never.
    pub fn stats_interval(&self) -> Duration {
        self.stats_interval
    }

    /// Changes how often statistics are asked for. They cannot be turned on or off: that is a
    /// feature, and the driver has chosen.
    pub fn set_stats_interval(&mut self, interval: Duration) -> Result<(), BalloonError> {
        if interval.is_zero() != self.stats_interval.is_zero() {
            return Err(BalloonError::StatsOnOff);
        }
        if interval != self.stats_interval {
            self.stats_interval = interval;
            if self.active.is_some() {
                self.next_poll = self.stats_period();
            }
            self.set_timer();
        }
        Ok(())
    }

    /// Asks the guest for all of its free pages, which go back to the host as they come.
    ///
    /// The guest keeps them for itself only when the run is acknowledged: with
    /// `acknowledge_on_stop` as soon as it has named them all, else by
    /// [`stop_hinting`](Self::stop_hinting).
    pub fn start_hinting(&mut self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.need(feature::FREE_PAGE_HINT, "free page hinting")?;
        self.hinting.start(acknowledge_on_stop);
        self.tell_driver();
        Ok(())
    }

    /// Ends a hinting run and gives the guest its pages back.
    pub fn stop_hinting(&mut self) -> Result<(), BalloonError> {
        self.need(feature::FREE_PAGE_HINT, "free page hinting")?;
        self.hinting.stop();
        self.tell_driver();
        Ok(())
    }

    /// How far the hinting run is.
    pub fn hinting_status(&self) -> Result<HintingStatus, BalloonError> {
        if self.features & feature::FREE_PAGE_HINT == 0 {
            return Err(BalloonError::NotConfigured("free page hinting"));
        }
        Ok(self.hinting.status())
    }

    /// Asks the guest to vacate `blocks` and to give them up whole; `done` is called with what came
    /// of it, after `patience` at the latest. They stay in the balloon, on top of the target, until
    /// another target is set.
    ///
    /// With `sync` the guest waits for pages that are busy for the moment. Blocks may be given in
    /// any order; those that are not wholly RAM are left out.
    pub fn evacuate(
        &mut self,
        blocks: impl IntoIterator<Item = BlockId>,
        sync: bool,
        patience: Duration,
        done: EvacuationDone,
    ) -> Result<(), BalloonError> {
        self.need(feature::EVACUATE, "evacuation")?;
        let ledger = &self.pool.ledger;
        let whole = |block: &BlockId| block.checked_range().is_some_and(|r| ledger.is_ram(r));
        let blocks: BTreeSet<BlockId> = blocks.into_iter().filter(whole).collect();
        let blocks: Vec<BlockId> = blocks.into_iter().collect();
        self.evacuations.request(&blocks, sync, patience, done);
        self.kick_evacuations();
        Ok(())
    }

    /// Whether any page of `block` is in the balloon, so that nothing may fill it again.
    pub fn has_holes(&self, block: BlockId) -> bool {
        self.pool.ledger.fill(block) != Fill::Empty
    }

    /// The pages of the balloon, by block.
    pub fn page_set(&self) -> PageSet {
        self.pool.ledger.page_set()
    }

    /// Pages that the guest reported free and has not put into the balloon since. Those that are in
    /// the host's memory are in use again.
    pub fn reported_set(&self) -> &PageSet {
        self.pool.reported()
    }

    /// Whether the driver takes pages back rather than have a process killed.
    pub fn deflates_on_oom(&self) -> bool {
        self.accepted(feature::DEFLATE_ON_OOM)
    }

    /// Whether the driver vacates blocks on request.
    pub fn can_evacuate(&self) -> bool {
        self.accepted(feature::EVACUATE)
    }

    /// Gives back those of `pages` that are in the balloon now: what the guest has touched there
    /// against the rules, or what the host has filled again.
    pub fn discard_ballooned(&mut self, pages: GuestRange) -> Result<Discarded, GuestRamError> {
        self.pool.discard_again(pages)
    }

    /// After the host has filled `block`: takes those of its pages away again that are in the
    /// balloon, and has huge pages forbidden there. Whether there were any.
    pub fn keep_holes(&mut self, block: BlockId) -> Result<bool, GuestRamError> {
        self.pool.keep_holes(block)
    }

    /// What has happened since the machine started.
    pub fn counters(&self) -> Counters {
        self.pool.counters
    }

    /// Whether a driver is up.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// The configuration that would make this balloon as it is now.
    pub fn current_config(&self) -> BalloonConfig {
        let offered = |bit| self.features & bit != 0;
        BalloonConfig {
            target: self.target_pages(),
            deflate_on_oom: offered(feature::DEFLATE_ON_OOM),
            stats_interval: self.stats_interval,
            free_page_hinting: offered(feature::FREE_PAGE_HINT),
            free_page_reporting: offered(feature::REPORTING),
            blocks: offered(feature::BLOCKS),
            evacuation: offered(feature::EVACUATE),
        }
    }

    /// The descriptor of the balloon's timer; when it is readable, call
    /// [`on_timer`](Self::on_timer).
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Recounts everything from the ground up; says what does not agree. For tests.
    pub fn validate(&self) -> Result<(), String> {
        self.pool.validate()
    }

    fn accepted(&self, bit: u64) -> bool {
        self.active.as_ref().is_some_and(|active| active.features & bit != 0)
    }

    fn need(&self, bit: u64, what: &'static str) -> Result<(), BalloonError> {
        if self.features & bit == 0 {
            return Err(BalloonError::NotConfigured(what));
        }
        if !self.accepted(bit) {
            return Err(BalloonError::NotAccepted(what));
        }
        Ok(())
    }

    fn tell_driver(&self) {
        if let Some(active) = &self.active {
            active.signal_config_change();
        }
    }
}
