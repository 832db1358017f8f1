// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon as a virtio device: configuration space, activation, and one dispatch over queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mm::units::{Pages, Pfn};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use zerocopy::IntoBytes;

use super::evacuate::Evacuations;
use super::hinting::Hinting;
use super::inflation::Moved;
use super::pool::{PATIENCE, Pool};
use super::protocol::{BLOCK_MAX, Config, DEVICE_TYPE, feature};
use super::reclaim::MemoryReclaim;
use super::roles::{self, Role};
use super::stats::Statistics;
use super::{BalloonConfig, BalloonError};
use crate::throttle::Throttle;
use crate::timer::Timer;
use crate::virtio::{
    Activation, Chain, ChainError, Deadline, DeviceFailure, DeviceQueue, GuestMemory, Interrupt,
    Progress, QueueError, Segments, VirtioDevice, read_config_slice,
};

const NAME: &str = "balloon";
/// Entries of every queue; one size for all, as a number's role depends on the driver's choice.
const QUEUE_SIZE: u16 = 256;
/// Longest that one turn of giving memory back keeps the event loop.
const TURN: Duration = Duration::from_millis(4);

/// The balloon device.
pub struct Balloon {
    // What the transport sees.
    pub(super) features: u64,
    queue_sizes: Vec<u16>,
    pub(super) config: Config,
    pub(super) active: Option<Active>,
    /// Pages of `config.num_pages` beyond the target: blocks that the host has borrowed.
    pub(super) surplus: Pages,

    // The memory.
    pub(super) pool: Pool,
    /// What the last buffer put in, if it was one page or one block: half of a migration.
    pub(super) moved_in: Option<Moved>,
    pub(super) scratch: Vec<Pfn>,

    // Conversations with the driver.
    pub(super) hinting: Hinting,
    pub(super) statistics: Statistics,
    pub(super) stats_interval: Duration,
    /// The statistics buffer that waits for the next poll.
    pub(super) stats_buffer: Option<u16>,
    pub(super) evacuations: Evacuations,
    /// The buffer that waits for the next request to vacate blocks.
    pub(super) evacuation_buffer: Option<(u16, Segments)>,

    // What is done later.
    pub(super) timer: Timer,
    next_tick: Option<Instant>,
    pub(super) next_poll: Option<Instant>,
    pub(super) log: Throttle,
}

/// What there is while a driver is up.
pub(super) struct Active {
    pub(super) features: u64,
    interrupt: Arc<dyn Interrupt>,
    roles: Vec<Role>,
    queues: Vec<DeviceQueue>,
}

impl Active {
    pub(super) fn signal_config_change(&self) {
        if let Err(error) = self.interrupt.signal_config_change() {
            tracing::warn!(%error, "cannot interrupt the balloon's driver");
        }
    }

    fn role(&self, queue: u16) -> Option<Role> {
        self.roles.get(usize::from(queue)).copied()
    }

    pub(super) fn queue(&mut self, role: Role) -> Option<&mut DeviceQueue> {
        let at = self.roles.iter().position(|other| *other == role)?;
        self.queues.get_mut(at)
    }
}

impl Balloon {
    /// A balloon over the memory that `reclaim` gives back.
    pub fn new(
        config: BalloonConfig,
        reclaim: Box<dyn MemoryReclaim>,
    ) -> Result<Self, BalloonError> {
        let offer = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
        let features = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | feature::MUST_TELL_HOST
            | feature::PAGE_POISON
            | offer(config.deflate_on_oom, feature::DEFLATE_ON_OOM)
            | offer(!config.stats_interval.is_zero(), feature::STATS_VQ | feature::CMA_STATS)
            | offer(config.free_page_hinting, feature::FREE_PAGE_HINT | feature::HINT_WAIT_ON_ACK)
            | offer(config.free_page_reporting, feature::REPORTING)
            | offer(config.blocks, feature::BLOCKS)
            | offer(config.blocks && config.evacuation, feature::EVACUATE);
        let mut balloon = Self {
            features,
            queue_sizes: roles::of(features).map(|_| QUEUE_SIZE).collect(),
            config: Config {
                block_pages: u32::try_from(mm::units::PAGES_PER_BLOCK).unwrap_or(0).into(),
                block_max: BLOCK_MAX.into(),
                ..Config::default()
            },
            active: None,
            surplus: Pages(0),
            pool: Pool::new(reclaim),
            moved_in: None,
            scratch: Vec::new(),
            hinting: Hinting::default(),
            statistics: Statistics::default(),
            stats_interval: config.stats_interval,
            stats_buffer: None,
            evacuations: Evacuations::default(),
            evacuation_buffer: None,
            timer: Timer::new()?,
            next_tick: None,
            next_poll: None,
            log: Throttle::default(),
        };
        balloon.set_target(config.target)?;
        Ok(balloon)
    }

    /// Something that was put off is due; called by the event loop when the timer's descriptor is
    /// readable, see [`TimerRunner`](super::TimerRunner).
    pub fn on_timer(&mut self) {
        self.timer.acknowledge();
        let now = Instant::now();
        if self.next_tick.is_some_and(|at| at <= now) {
            self.pool.tick();
            self.next_tick = None;
        }
        if self.next_poll.is_some_and(|at| at <= now) {
            self.poll_statistics();
            self.next_poll = self.stats_period();
        }
        self.pool.counters.evacuation_fails += self.evacuations.expire(now);
        self.pool.work(now + TURN);
        self.set_timer();
    }

    /// Sets the timer to what is due next.
    pub(super) fn set_timer(&mut self) {
        if self.pool.waiting() {
            self.next_tick.get_or_insert_with(|| Instant::now() + PATIENCE);
        } else {
            self.next_tick = None;
        }
        let now = self.pool.due().then(Instant::now);
        let deadlines = [now, self.next_tick, self.next_poll, self.evacuations.deadline()];
        let next = deadlines.into_iter().flatten().min();
        self.timer.set(next);
    }

    /// When the next poll of statistics is due, counted from now.
    pub(super) fn stats_period(&self) -> Option<Instant> {
        (!self.stats_interval.is_zero()).then(|| Instant::now() + self.stats_interval)
    }

    /// What the driver is to reach: the host's target, and the surplus on top of it.
    pub(super) fn goal(&self) -> Pages {
        Pages(self.config.num_pages.get().into())
    }

    fn dispatch(&mut self, active: &mut Active, index: u16) -> Result<(), QueueError> {
        let Some(role) = active.role(index) else { return Ok(()) };
        let Some(queue) = active.queue(role) else { return Ok(()) };
        match role {
            Role::Inflate => drain(queue, Segments::collect, |mem, buffer| {
                self.inflate(mem, buffer);
                0
            }),
            Role::Deflate => drain(queue, Segments::collect, |mem, buffer| {
                self.deflate(mem, buffer);
                0
            }),
            Role::Stats => self.take_statistics(queue),
            Role::Reports => {
                let poisoned = self.poisoned(active.features);
                let Some(queue) = active.queue(role) else { return Ok(()) };
                drain(queue, Segments::collect_unplaced, |_, buffer| {
                    self.report(buffer, poisoned);
                    0
                })
            }
            Role::Hints => {
                let poisoned = self.poisoned(active.features);
                let mut changed = false;
                let Some(queue) = active.queue(role) else { return Ok(()) };
                drain(queue, Segments::collect_unplaced, |mem, buffer| {
                    changed |= self.hint(mem, buffer, poisoned);
                    0
                })?;
                if changed {
                    active.signal_config_change();
                }
                Ok(())
            }
            Role::Blocks => drain(queue, Segments::collect, |mem, buffer| self.blocks(mem, buffer)),
            Role::Evacuations => {
                let too_late = self.take_answers(queue)?;
                self.send_evacuation(queue)?;
                queue.rearm()?;
                if too_late {
                    // It looks at its target only when told to.
                    active.signal_config_change();
                }
                Ok(())
            }
        }
    }

    pub(super) fn usable(&mut self, buffer: Result<Segments, ChainError>) -> Option<Segments> {
        buffer.map_err(|error| self.bad_buffer(&error)).ok()
    }

    pub(super) fn bad_buffer(&mut self, cause: &dyn std::fmt::Display) {
        self.pool.counters.bad_buffers += 1;
        self.note(cause);
    }

    pub(super) fn note(&mut self, cause: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.log.admit() {
            tracing::warn!(suppressed, "balloon: {cause}");
        }
    }
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
    /// For hints it is a matter of safety: the driver puts a hinted page where the guest may take
    /// it again as soon as it has notified (Linux `get_free_page_and_send`); by then the page has
    /// been discarded, and nothing of the guest's can be lost. For inflation and deflation it is a
    /// matter of speed: the driver waits for each buffer of 256 pages, and so finds it used when
    /// it looks, where it would have slept until the event loop had run and interrupted it.
    fn runs_at_notify(&self, queue: u16) -> bool {
        let at_notify = [Role::Inflate, Role::Deflate, Role::Hints];
        match &self.active {
            Some(active) => active.role(queue).is_some_and(|role| at_notify.contains(&role)),
            None => at_notify.iter().any(|role| roles::possible(self.features, queue, *role)),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config =
            Config { free_page_hint_cmd_id: self.hinting.status().host_cmd.into(), ..self.config };
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
            self.pool.counters.activate_fails += 1;
            return Err(DeviceFailure::new(NAME, "EVACUATE was accepted without BLOCKS"));
        }
        let roles: Vec<Role> = roles::of(features).collect();
        if let Some(queue) = roles.iter().zip(&queues).position(|(_, queue)| !queue.ready()) {
            self.pool.counters.activate_fails += 1;
            return Err(DeviceFailure::new(NAME, format!("queue {queue} was not set up")));
        }
        self.pool.set_patient(features & feature::MUST_TELL_HOST != 0);
        self.active = Some(Active { features, interrupt, roles, queues });
        self.next_poll = self.stats_period();
        self.set_timer();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        // Nobody is left who has lent anything.
        self.set_surplus(Pages(0));
        self.pool.forget();
        self.moved_in = None;
        self.hinting.reset();
        self.statistics = Statistics::default();
        self.stats_buffer = None;
        self.evacuation_buffer = None;
        self.pool.counters.evacuation_fails += self.evacuations.reset();
        self.config.actual = 0.into();
        self.config.poison_val = 0.into();
        self.next_poll = None;
        self.set_timer();
    }

    fn process(&mut self, queue: u16, _deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.dispatch(&mut active, queue);
        self.active = Some(active);
        self.set_timer();
        result.map(|()| Progress::Done).map_err(|error| DeviceFailure::new(NAME, error))
    }
}

/// Handles the buffers of `queue`, as many as it is deep; `handle` returns the bytes written.
fn drain(
    queue: &mut DeviceQueue,
    collect: fn(Chain, u16) -> Result<Segments, ChainError>,
    mut handle: impl FnMut(&GuestMemory, Result<Segments, ChainError>) -> u32,
) -> Result<(), QueueError> {
    let mem = Arc::clone(queue.mem());
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop()? else { break };
        let head = chain.head_index();
        let written = handle(&mem, collect(chain, queue.size()));
        queue.push(head, written)?;
    }
    queue.finish()
}
