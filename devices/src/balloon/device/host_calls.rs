// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's host interface: targets, statistics, hinting, evacuation, and the record of its
//! pages. Called with the balloon locked, from any thread except a vCPU's.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use mm::blocks::page_set::PageSet;
use mm::guest_ram::GuestRamError;
use mm::range_set::RangeSet;
use mm::units::{BlockId, GuestRange, Pages};

use super::super::changes::Changes;
use super::super::counters::BalloonCounters;
use super::super::hinting::HintingStatus;
use super::super::ledger::BlockFill;
use super::super::memory_reclaim::Discarded;
use super::super::protocol::feature;
use super::super::requests::EvacuationDone;
use super::super::roles::BalloonQueue;
use super::super::serving::Serving;
use super::super::stats::Statistics;
use super::super::target::BalloonTarget;
use super::super::{BalloonConfig, BalloonError};
use super::Balloon;

impl Balloon {
    /// Sets the target to `target` pages; the guest follows asynchronously.
    ///
    /// May be called before the guest has reached the previous target.
    ///
    /// # Errors
    ///
    /// [`BalloonError::TargetTooLarge`]; the target is unchanged.
    pub fn set_target(&mut self, target: Pages) -> Result<(), BalloonError> {
        self.change_target(|goal| goal.set(target))
    }

    /// Pages that the host wants in the balloon.
    pub fn target_pages(&self) -> Pages {
        self.core.target.pages()
    }

    /// Pages requested on top of the target: those of evacuated blocks, and the value of
    /// [`set_surplus`](Self::set_surplus).
    pub fn surplus(&self) -> Pages {
        self.core.target.surplus()
    }

    /// Borrows memory from the guest temporarily: the driver should put `surplus` pages in the
    /// balloon on top of the target, blocks first. A lower surplus gives memory back, single pages
    /// first. Limited to RAM; the next target ends it.
    pub fn set_surplus(&mut self, surplus: Pages) {
        let result = self.change_target(|goal| {
            goal.set_surplus(surplus);
            Ok(())
        });
        debug_assert!(result.is_ok());
    }

    /// Lends the guest pages of the balloon temporarily: the driver should have `advance` pages fewer
    /// in it than the target says. It takes single pages back before blocks. Limited to the target;
    /// the next target ends it.
    pub fn set_advance(&mut self, advance: Pages) {
        let result = self.change_target(|goal| {
            goal.set_advance(advance);
            Ok(())
        });
        debug_assert!(result.is_ok());
    }

    /// Pages that the guest may have back for now.
    pub fn advance(&self) -> Pages {
        self.core.target.advance()
    }

    /// The size that the driver should reach: target and surplus, less the advance.
    pub fn goal(&self) -> Pages {
        self.core.target.goal()
    }

    /// Changes the driver's goal and notifies it.
    fn change_target(
        &mut self,
        change: impl FnOnce(&mut BalloonTarget) -> Result<(), BalloonError>,
    ) -> Result<(), BalloonError> {
        let before = self.core.target.goal();
        change(&mut self.core.target)?;
        let goal = self.core.target.goal();
        if goal == before {
            return Ok(());
        }
        // A lower goal may already be reached; no more pages will arrive.
        if self.core.pool.ledger.ballooned() >= goal {
            self.core.pool.hurry();
            self.end_turn();
        }
        self.signal_config_change();
        Ok(())
    }

    /// Pages that the driver says are in it. See [`ballooned`](Self::ballooned) for the device's own
    /// record.
    pub fn actual(&self) -> Pages {
        Pages(self.config.actual.get().into())
    }

    /// Pages that are in it by the device's own record.
    pub fn ballooned(&self) -> Pages {
        self.core.pool.ledger.ballooned()
    }

    /// Pages in the balloon that are not yet discarded on the host.
    pub fn pending(&self) -> Pages {
        self.core.pool.ledger.pending()
    }

    /// Pages that the guest takes out of the balloon, or gets back after a reset, but that the host
    /// has no memory for now: its pool of huge pages is empty.
    pub fn waiting_for_host(&self) -> Pages {
        let waiting = [&self.deflating, &self.blocks].into_iter().filter(|serving| serving.waits());
        let ranges = waiting.filter_map(Serving::work).flat_map(|work| work.restoring());
        let leaving: u64 = ranges.map(|range| range.pages().0).sum();
        Pages(leaving + self.core.pool.to_restore().0)
    }

    /// The pages of the balloon. No other guest RAM may be assumed free.
    pub fn ballooned_ranges(&self) -> RangeSet {
        self.core.pool.ledger.ranges()
    }

    /// The figures that the guest sent last.
    pub fn statistics(&self) -> &Statistics {
        self.polling.statistics()
    }

    /// Asks the guest for statistics now; false if it still owes an answer.
    pub fn poll_statistics(&mut self) -> bool {
        let Self { active, polling, core, .. } = self;
        let queue = active.as_mut().and_then(|active| active.queue(BalloonQueue::Stats));
        let asked = queue.is_some_and(|queue| polling.poll(queue, &mut core.journal));
        if !asked && self.accepted(feature::STATS_VQ) {
            self.core.journal.counters.stats_update_fails += 1;
        }
        asked
    }

    /// How often statistics are asked for; zero if never.
    pub fn stats_interval(&self) -> Duration {
        self.polling.interval()
    }

    /// Changes how often statistics are asked for.
    ///
    /// # Errors
    ///
    /// [`BalloonError::StatsOnOff`]: statistics are a feature, which the driver has accepted or not.
    pub fn set_stats_interval(&mut self, interval: Duration) -> Result<(), BalloonError> {
        if interval.is_zero() != self.polling.interval().is_zero() {
            return Err(BalloonError::StatsOnOff);
        }
        if interval != self.polling.interval() {
            self.polling.set_interval(interval);
            if self.active.is_some() {
                self.polling.schedule();
            }
            self.end_turn();
        }
        Ok(())
    }

    /// Asks the guest for hints about all its free pages, which are returned to the host as they
    /// arrive.
    ///
    /// The guest reuses them only after the run is acknowledged: with `acknowledge_on_stop` as soon
    /// as it has hinted them all, else by [`stop_hinting`](Self::stop_hinting).
    ///
    /// # Errors
    ///
    /// If hinting is not configured, or not accepted by a driver.
    pub fn start_hinting(&mut self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.need(feature::FREE_PAGE_HINT, "free page hinting")?;
        self.hinting.start(acknowledge_on_stop);
        self.signal_config_change();
        Ok(())
    }

    /// Ends a hinting run and returns the pages to the guest.
    ///
    /// # Errors
    ///
    /// If hinting is not configured, or not accepted by a driver.
    pub fn stop_hinting(&mut self) -> Result<(), BalloonError> {
        self.need(feature::FREE_PAGE_HINT, "free page hinting")?;
        self.hinting.stop();
        self.signal_config_change();
        Ok(())
    }

    /// How far the hinting run is.
    ///
    /// # Errors
    ///
    /// If hinting is not configured.
    pub fn hinting_status(&self) -> Result<HintingStatus, BalloonError> {
        if self.features & feature::FREE_PAGE_HINT == 0 {
            return Err(BalloonError::NotConfigured("free page hinting"));
        }
        Ok(self.hinting.status())
    }

    /// Asks the guest to evacuate `blocks` and to give them up whole; `done` is called with the
    /// result, after `patience` at the latest. They stay in the balloon, on top of the target, until
    /// another target is set.
    ///
    /// With `sync` the guest waits for busy pages. Blocks may be in any order; blocks that are not
    /// entirely RAM are skipped.
    ///
    /// # Errors
    ///
    /// If evacuation is not configured, or not accepted by a driver; `done` is dropped then.
    pub fn evacuate(
        &mut self,
        blocks: impl IntoIterator<Item = BlockId>,
        sync: bool,
        patience: Duration,
        done: EvacuationDone,
    ) -> Result<(), BalloonError> {
        self.need(feature::EVACUATE, "evacuation")?;
        let ledger = &self.core.pool.ledger;
        let whole = |block: &BlockId| block.checked_range().is_some_and(|r| ledger.is_ram(r));
        let blocks: BTreeSet<BlockId> = blocks.into_iter().filter(whole).collect();
        let blocks: Vec<BlockId> = blocks.into_iter().collect();
        self.evacuation.requests().request(&blocks, sync, patience, done);
        let Self { active, evacuation, core, .. } = self;
        if let Some(queue) =
            active.as_mut().and_then(|active| active.queue(BalloonQueue::Evacuations))
            && let Err(error) = evacuation.send(queue, &core.pool.ledger)
        {
            core.journal.warn(error);
        }
        self.end_turn();
        Ok(())
    }

    /// Whether any page of `block` is in the balloon, so that nothing may fill it again.
    pub fn has_holes(&self, block: BlockId) -> bool {
        self.core.pool.ledger.fill(block) != BlockFill::Empty
    }

    /// Adds the pages of the balloon that lie in `blocks` to `ballooned`, and those that the guest
    /// reported free and has not put into the balloon since to `reported`. Those that are in the
    /// host's memory are in use again. A large guest's record is best copied part by part.
    pub fn copy_pages(
        &self,
        blocks: std::ops::Range<BlockId>,
        ballooned: &mut PageSet,
        reported: &mut PageSet,
    ) {
        self.core.pool.ledger.copy_pages(blocks.clone(), ballooned);
        for (block, pages) in self.core.pool.reported().range(blocks) {
            reported.insert(block, pages);
        }
    }

    /// Pages that the guest reported free and has not put into the balloon since. Those that are in
    /// the host's memory are in use again.
    pub fn reported_set(&self) -> &PageSet {
        self.core.pool.reported()
    }

    /// Whether the driver deflates the balloon instead of letting the OOM killer act.
    pub fn deflates_on_oom(&self) -> bool {
        self.accepted(feature::DEFLATE_ON_OOM)
    }

    /// Whether the driver evacuates blocks on request.
    pub fn can_evacuate(&self) -> bool {
        self.accepted(feature::EVACUATE)
    }

    /// Discards those of `pages` that are in the balloon now: pages that the guest accessed against
    /// the rules, or that the host has filled again. Takes a short step only; returns the pages that
    /// are left, for another call with the balloon unlocked in between.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    pub fn discard_ballooned(
        &mut self,
        pages: GuestRange,
    ) -> Result<(Discarded, Option<GuestRange>), GuestRamError> {
        self.core.pool.discard_again(pages, &mut self.core.journal)
    }

    /// Called after the host has filled `block`: if pages of it are in the balloon, forbids huge
    /// pages there. Returns whether there are any, to be discarded again.
    pub fn keep_holes(&mut self, block: BlockId) -> bool {
        self.core.pool.keep_holes(block, &mut self.core.journal)
    }

    /// Counters since the machine started.
    pub fn counters(&self) -> BalloonCounters {
        self.core.journal.counters
    }

    /// Whether a driver is up.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// How other threads learn that the balloon's size, its statistics or its driver have changed.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// The current configuration of this balloon.
    pub fn current_config(&self) -> BalloonConfig {
        let offered = |bit| self.features & bit != 0;
        BalloonConfig {
            target: self.target_pages(),
            deflate_on_oom: offered(feature::DEFLATE_ON_OOM),
            stats_interval: self.polling.interval(),
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

    /// Recounts everything from the ground up, for tests.
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub fn validate(&self) -> Result<(), String> {
        self.core.pool.validate(&self.blocks_under_way())
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

    fn signal_config_change(&self) {
        if let Some(active) = &self.active {
            active.signal_config_change();
        }
    }
}
