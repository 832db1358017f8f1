// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon as its driver sees it: configuration space, activation, and one dispatch over queues.
//!
//! - `guest_calls.rs`: the balloon as its transport sees it
//! - `host_calls.rs`: the balloon as the host sees it

mod guest_calls;
mod host_calls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mm::budget::Budget;
use mm::units::{Pages, SaturatingInto};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::balloon_core::BalloonCore;
use super::changes::Changes;
use super::evacuation::EvacuationRequests;
use super::hinting::Hinting;
use super::inflation::Inflation;
use super::memory_reclaim::MemoryReclaim;
use super::polling::Polling;
use super::pool::{PATIENCE, Pool};
use super::protocol::{BLOCK_MAX, BalloonConfigSpace, feature};
use super::roles::{self, BalloonQueue};
use super::serving::Serving;
use super::{BalloonConfig, BalloonError, block_queue, free_pages};
use crate::timer::Timer;
use crate::virtio::{
    Deadline, DeviceFailure, DeviceQueue, Interrupt, Progress, QueueError, Segments,
};

const NAME: &str = "balloon";
/// Entries of every queue; one size for all, as a number's role depends on the driver's choice.
const QUEUE_SIZE: u16 = 256;
/// How long after the host had no memory for the guest it is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// The balloon device.
pub struct Balloon {
    // What the transport sees.
    features: u64,
    queue_sizes: Vec<u16>,
    config: BalloonConfigSpace,
    active: Option<ActiveBalloon>,

    // The memory.
    pub(super) core: BalloonCore,

    // One part per queue; the block queue has only its current buffer.
    inflation: Inflation,
    inflating: Serving,
    deflating: Serving,
    blocks: Serving,
    reporting: Serving,
    hinting: Hinting,
    hints: Serving,
    polling: Polling,
    evacuation: EvacuationRequests,

    // The timer, and the listeners that are notified.
    timer: Timer,
    next_tick: Option<Instant>,
    next_retry: Option<Instant>,
    changes: Arc<Changes>,
    announced: Announced,
}

/// State of the device while a driver is active.
struct ActiveBalloon {
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    roles: Vec<BalloonQueue>,
    queues: Vec<DeviceQueue>,
}

/// State whose changes other threads wait for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Announced {
    ballooned: Pages,
    statistics: Option<Instant>,
    active: bool,
}

impl ActiveBalloon {
    fn signal_config_change(&self) {
        if let Err(error) = self.interrupt.signal_config_change() {
            tracing::warn!(%error, "cannot interrupt the balloon's driver");
        }
    }

    fn role(&self, queue: u16) -> Option<BalloonQueue> {
        self.roles.get(usize::from(queue)).copied()
    }

    fn queue(&mut self, role: BalloonQueue) -> Option<&mut DeviceQueue> {
        let at = self.roles.iter().position(|other| *other == role)?;
        self.queues.get_mut(at)
    }
}

impl Balloon {
    /// A balloon over the memory of `reclaim`. The mappings that its holes cost the process are
    /// charged to `mappings`.
    ///
    /// # Errors
    ///
    /// [`BalloonError::TargetTooLarge`], and [`BalloonError::Host`] if there is no timer.
    pub fn new(
        config: BalloonConfig,
        reclaim: Box<dyn MemoryReclaim>,
        mappings: &Arc<Budget>,
    ) -> Result<Self, BalloonError> {
        let features = offered(&config);
        let mut core = BalloonCore::new(Pool::new(reclaim, mappings));
        core.target.set(config.target)?;
        Ok(Self {
            features,
            queue_sizes: roles::of(features).map(|_| QUEUE_SIZE).collect(),
            config: BalloonConfigSpace {
                block_pages: mm::units::PAGES_PER_BLOCK.saturating_u32().into(),
                block_max: BLOCK_MAX.into(),
                ..BalloonConfigSpace::default()
            },
            active: None,
            core,
            inflation: Inflation::default(),
            inflating: Serving::default(),
            deflating: Serving::default(),
            blocks: Serving::default(),
            reporting: Serving::default(),
            hinting: Hinting::default(),
            hints: Serving::default(),
            polling: Polling::new(config.stats_interval),
            evacuation: EvacuationRequests::default(),
            timer: Timer::new()?,
            next_tick: None,
            next_retry: None,
            changes: Arc::default(),
            announced: Announced::default(),
        })
    }

    /// Runs deferred work that is due; called by the event loop when the timer's descriptor is
    /// readable, see [`TimerRunner`](super::TimerRunner). Takes at most as long as one round of a
    /// queue; remaining work makes the descriptor readable again.
    pub fn on_timer(&mut self) {
        self.on_timer_within(&mut Deadline::new());
    }

    /// [`on_timer`](Self::on_timer) with a deadline of the caller's.
    pub fn on_timer_within(&mut self, deadline: &mut Deadline) {
        self.timer.acknowledge();
        let now = Instant::now();
        let pool = &mut self.core.pool;
        if self.next_tick.take_if(|at| *at <= now).is_some() {
            pool.tick();
        }
        if self.next_retry.take_if(|at| *at <= now).is_some() {
            self.retry_buffers(deadline);
        }
        if self.polling.is_due(now) {
            self.poll_statistics();
            self.polling.schedule();
        }
        self.evacuation.expire(now, &mut self.core.journal);
        self.core.pool.work(&mut self.core.journal, deadline);
        self.end_turn();
    }

    /// Retries immediately what the host had no memory for.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        self.next_retry = Some(Instant::now());
        self.on_timer();
    }

    /// Continues with the buffers that waited for host memory.
    fn retry_buffers(&mut self, deadline: &mut Deadline) {
        let Some(mut active) = self.active.take() else { return };
        for (role, waits) in [
            (BalloonQueue::Deflate, self.deflating.waits()),
            (BalloonQueue::Blocks, self.blocks.waits()),
        ] {
            let queue = active.roles.iter().position(|other| *other == role);
            let Some(queue) = queue.and_then(|queue| u16::try_from(queue).ok()) else { continue };
            if !waits {
                continue;
            }
            match self.dispatch(&mut active, queue, deadline) {
                // The queue's own rounds do the rest.
                Ok(Progress::More) => active.queues[usize::from(queue)].kick_self(),
                Ok(Progress::Done) => {}
                Err(error) => {
                    self.core.journal.warn(error);
                    let _ = active.interrupt.signal_needs_reset();
                }
            }
        }
        self.active = Some(active);
    }

    /// Sets the timer to the next deadline, and announces changes to waiting threads.
    fn end_turn(&mut self) {
        let pool = &self.core.pool;
        if pool.waiting() {
            self.next_tick.get_or_insert_with(|| Instant::now() + PATIENCE);
        } else {
            self.next_tick = None;
        }
        if self.deflating.waits() || self.blocks.waits() {
            self.next_retry.get_or_insert_with(|| Instant::now() + RETRY);
        } else {
            self.next_retry = None;
        }
        let now = pool.due().then(Instant::now);
        let next = [
            now,
            self.next_tick,
            self.next_retry,
            self.polling.deadline(),
            self.evacuation.deadline(),
        ];
        self.timer.set(next.into_iter().flatten().min());
        let state = Announced {
            ballooned: self.core.pool.ledger.ballooned(),
            statistics: self.polling.statistics().updated,
            active: self.active.is_some(),
        };
        if state != self.announced {
            self.announced = state;
            self.changes.announce();
        }
    }

    fn dispatch(
        &mut self,
        active: &mut ActiveBalloon,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        let Some(role) = active.role(index) else { return Ok(Progress::Done) };
        let poisoned = self.poisoned(active.features);
        let Some(queue) = active.queue(role) else { return Ok(Progress::Done) };
        let Self { core, inflation, hinting, evacuation, polling, .. } = self;
        let (located, unlocated) = (Segments::collect, Segments::collect_unplaced);
        match role {
            BalloonQueue::Inflate => self.inflating.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| (inflation.inflate(core, mem, buffer, deadline), 0),
            ),
            BalloonQueue::Deflate => self.deflating.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| (inflation.deflate(core, mem, buffer, deadline), 0),
            ),
            BalloonQueue::Blocks => self.blocks.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| {
                    block_queue::handle(core, mem, buffer, deadline, |core, blocks| {
                        evacuation.note_inflated(core, blocks);
                    })
                },
            ),
            BalloonQueue::Reports => self.reporting.process(
                queue,
                core,
                deadline,
                unlocated,
                |core, _, buffer, deadline| {
                    (free_pages::report(core, buffer, poisoned, deadline), 0)
                },
            ),
            BalloonQueue::Hints => {
                let mut tell = false;
                let progress = self.hints.process(
                    queue,
                    core,
                    deadline,
                    unlocated,
                    |core, mem, buffer, deadline| {
                        let (work, told) =
                            free_pages::hint(hinting, core, mem, buffer, poisoned, deadline);
                        tell |= told;
                        (work, 0)
                    },
                );
                if tell {
                    active.signal_config_change();
                }
                progress
            }
            BalloonQueue::Stats => polling.process(queue, &mut core.journal, deadline),
            BalloonQueue::Evacuations => {
                let (progress, too_late) = evacuation.process(queue, core, deadline)?;
                if too_late {
                    // The driver looks at its target only when told to.
                    active.signal_config_change();
                }
                Ok(progress)
            }
        }
    }

    /// Whether free pages hold a pattern that the guest will look for (virtio 1.3, 5.5.6.7): a
    /// discarded page reads as zero.
    fn poisoned(&self, features: u64) -> bool {
        features & feature::PAGE_POISON != 0 && self.config.poison_val.get() != 0
    }

    /// Blocks whose pending pages are discarded by the current buffers.
    fn blocks_under_way(&self) -> BTreeSet<mm::units::BlockId> {
        let buffers = [&self.inflating, &self.blocks];
        buffers.into_iter().filter_map(Serving::work).flat_map(|work| work.blocks()).collect()
    }

    /// Fails an activation.
    fn refuse(&mut self, cause: impl std::fmt::Display) -> DeviceFailure {
        self.core.journal.counters.activate_fails += 1;
        DeviceFailure::new(NAME, cause)
    }
}

/// The features of a balloon of the given configuration.
fn offered(config: &BalloonConfig) -> u64 {
    let offer = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
    (1 << VIRTIO_F_VERSION_1)
        | (1 << VIRTIO_RING_F_EVENT_IDX)
        | feature::MUST_TELL_HOST
        | feature::PAGE_POISON
        | offer(config.deflate_on_oom, feature::DEFLATE_ON_OOM)
        | offer(!config.stats_interval.is_zero(), feature::STATS_VQ | feature::CMA_STATS)
        | offer(config.free_page_hinting, feature::FREE_PAGE_HINT | feature::HINT_WAIT_ON_ACK)
        | offer(config.free_page_reporting, feature::REPORTING)
        | offer(config.blocks, feature::BLOCKS)
        | offer(config.blocks && config.evacuation, feature::EVACUATE)
}
