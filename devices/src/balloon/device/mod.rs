// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon as its driver sees it: configuration space, activation, and one dispatch over queues.
//!
//! - `host.rs`: the balloon as the host sees it

mod host;

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mm::budget::Budget;
use mm::units::Pages;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use zerocopy::IntoBytes;

use super::changes::Changes;
use super::core::Core;
use super::evacuation::Evacuation;
use super::hinting::Hinting;
use super::inflation::Inflation;
use super::polling::Polling;
use super::pool::{PATIENCE, Pool};
use super::protocol::{BLOCK_MAX, Config, DEVICE_TYPE, feature};
use super::reclaim::MemoryReclaim;
use super::roles::{self, Role};
use super::serving::Serving;
use super::{BalloonConfig, BalloonError, block_queue, free_pages};
use crate::timer::Timer;
use crate::virtio::{
    Activation, Deadline, DeviceFailure, DeviceQueue, Interrupt, Progress, QueueError, Segments,
    VirtioDevice, read_config_slice,
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
    config: Config,
    active: Option<Active>,

    // The memory.
    pub(super) core: Core,

    // One part for each queue; the block queue has none of its own but its buffer under way.
    inflation: Inflation,
    inflating: Serving,
    deflating: Serving,
    blocks: Serving,
    reporting: Serving,
    hinting: Hinting,
    hints: Serving,
    polling: Polling,
    evacuation: Evacuation,

    // The timer, and the listeners that are notified.
    timer: Timer,
    next_tick: Option<Instant>,
    next_retry: Option<Instant>,
    changes: Arc<Changes>,
    announced: Announced,
}

/// What the device has while a driver is up.
struct Active {
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    roles: Vec<Role>,
    queues: Vec<DeviceQueue>,
}

/// What other threads wait to see changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Announced {
    ballooned: Pages,
    statistics: Option<Instant>,
    active: bool,
}

impl Active {
    fn signal_config_change(&self) {
        if let Err(error) = self.interrupt.signal_config_change() {
            tracing::warn!(%error, "cannot interrupt the balloon's driver");
        }
    }

    fn role(&self, queue: u16) -> Option<Role> {
        self.roles.get(usize::from(queue)).copied()
    }

    fn queue(&mut self, role: Role) -> Option<&mut DeviceQueue> {
        let at = self.roles.iter().position(|other| *other == role)?;
        self.queues.get_mut(at)
    }
}

impl Balloon {
    /// A balloon over the memory that `reclaim` gives back. What holes in it cost the process is
    /// charged to `mappings`, which counts them.
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
        let mut core = Core::new(Pool::new(reclaim, mappings));
        core.target.set(config.target)?;
        Ok(Self {
            features,
            queue_sizes: roles::of(features).map(|_| QUEUE_SIZE).collect(),
            config: Config {
                block_pages: u32::try_from(mm::units::PAGES_PER_BLOCK).unwrap_or(0).into(),
                block_max: BLOCK_MAX.into(),
                ..Config::default()
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
            evacuation: Evacuation::default(),
            timer: Timer::new()?,
            next_tick: None,
            next_retry: None,
            changes: Arc::default(),
            announced: Announced::default(),
        })
    }

    /// Something that was put off is due; called by the event loop when the timer's descriptor is
    /// readable, see [`TimerRunner`](super::TimerRunner). Lasts as long as one round of a queue at
    /// most; what is left then makes the descriptor readable again.
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

    /// Tries again now what the host had no memory for.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        self.next_retry = Some(Instant::now());
        self.on_timer();
    }

    /// Goes on with the buffers that waited for the host to have memory.
    fn retry_buffers(&mut self, deadline: &mut Deadline) {
        let Some(mut active) = self.active.take() else { return };
        for (role, waits) in
            [(Role::Deflate, self.deflating.waits()), (Role::Blocks, self.blocks.waits())]
        {
            let Some(queue) = active.roles.iter().position(|other| *other == role) else {
                continue;
            };
            if !waits {
                continue;
            }
            let queue = u16::try_from(queue).unwrap_or(u16::MAX);
            match self.dispatch(&mut active, queue, deadline) {
                // What is left is for the queue's own rounds.
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

    /// Sets the timer to what is due next, and tells those who wait for a change.
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
        active: &mut Active,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        let Some(role) = active.role(index) else { return Ok(Progress::Done) };
        let poisoned = self.poisoned(active.features);
        let Some(queue) = active.queue(role) else { return Ok(Progress::Done) };
        let Self { core, inflation, hinting, evacuation, polling, .. } = self;
        let (located, unlocated) = (Segments::collect, Segments::collect_unplaced);
        match role {
            Role::Inflate => self.inflating.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| (inflation.inflate(core, mem, buffer, deadline), 0),
            ),
            Role::Deflate => self.deflating.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| (inflation.deflate(core, mem, buffer, deadline), 0),
            ),
            Role::Blocks => self.blocks.process(
                queue,
                core,
                deadline,
                located,
                |core, mem, buffer, deadline| {
                    block_queue::handle(core, mem, buffer, deadline, |core, blocks| {
                        evacuation.note_inflated(core, blocks)
                    })
                },
            ),
            Role::Reports => self.reporting.process(
                queue,
                core,
                deadline,
                unlocated,
                |core, _, buffer, deadline| {
                    (free_pages::report(core, buffer, poisoned, deadline), 0)
                },
            ),
            Role::Hints => {
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
            Role::Stats => polling.process(queue, &mut core.journal, deadline),
            Role::Evacuations => {
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

    /// Blocks whose pending pages go back to the host with a buffer under way.
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

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Pages run in the vCPU that notifies, in and out and as hints; all else in the event loop.
    ///
    /// For hints it is a matter of safety, see [`finishes_at_notify`](Self::finishes_at_notify). For
    /// inflation and deflation it is a matter of speed: the driver waits for each buffer of 256
    /// pages, and so finds it used when it looks, where it would have slept until the event loop had
    /// run and interrupted it.
    fn runs_at_notify(&self, queue: u16) -> bool {
        let at_notify = [Role::Inflate, Role::Deflate, Role::Hints];
        match &self.active {
            Some(active) => active.role(queue).is_some_and(|role| at_notify.contains(&role)),
            None => at_notify.iter().any(|role| roles::possible(self.features, queue, *role)),
        }
    }

    /// Hints: the driver puts a hinted page where the guest may take it again as soon as it has
    /// notified (Linux `get_free_page_and_send`). By then the page must have been discarded, or
    /// something of the guest's would be lost.
    fn finishes_at_notify(&self, queue: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.role(queue) == Some(Role::Hints))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            num_pages: self.core.target.goal_on_wire().into(),
            free_page_hint_cmd_id: self.hinting.status().host_cmd.into(),
            ..self.config
        };
        let config = config.as_bytes();
        let len = match self.features & feature::BLOCKS {
            0 => Config::STANDARD_LEN,
            _ => config.len(),
        };
        read_config_slice(&config[..len], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data) else { return };
        match offset {
            Config::ACTUAL => self.config.actual = value.into(),
            Config::POISON_VAL => self.config.poison_val = value.into(),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let Activation { features, interrupt, queues, .. } = activation;
        if features & feature::EVACUATE != 0 && features & feature::BLOCKS == 0 {
            return Err(self.refuse("EVACUATE was accepted without BLOCKS"));
        }
        let roles: Vec<Role> = roles::of(features).collect();
        if let Some(queue) = roles.iter().zip(&queues).position(|(_, queue)| !queue.ready()) {
            return Err(self.refuse(format_args!("queue {queue} was not set up")));
        }
        self.core.pool.set_patient(features & feature::MUST_TELL_HOST != 0);
        self.active = Some(Active { features, interrupt, roles, queues });
        self.polling.schedule();
        self.end_turn();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        let leaving = [&self.deflating, &self.blocks].into_iter().filter_map(Serving::work);
        let leaving = leaving.flat_map(|work| work.restoring()).collect();
        let queues = [
            &mut self.inflating,
            &mut self.deflating,
            &mut self.blocks,
            &mut self.reporting,
            &mut self.hints,
        ];
        queues.into_iter().for_each(Serving::reset);
        // The driver that lent memory is gone.
        self.core.target.set_surplus(Pages(0));
        self.core.pool.forget(leaving);
        self.core.migrations = Default::default();
        self.hinting.reset();
        self.polling.reset();
        self.evacuation.reset(&mut self.core.journal);
        self.config.actual = 0.into();
        self.config.poison_val = 0.into();
        self.core.pool.work(&mut self.core.journal, &mut Deadline::new());
        self.end_turn();
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.core.pool.take_remains()
    }

    /// Brings back the memory that the last driver had given up, where the host has to allocate it
    /// before the guest may touch it.
    fn clean_up(&mut self, deadline: &mut Deadline) -> Progress {
        let Core { pool, journal, .. } = &mut self.core;
        pool.restore_forgotten(journal, deadline);
        Progress::more_if(pool.to_restore() > Pages(0))
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.dispatch(&mut active, queue, deadline);
        self.active = Some(active);
        self.end_turn();
        result.map_err(|error| DeviceFailure::new(NAME, error))
    }
}
