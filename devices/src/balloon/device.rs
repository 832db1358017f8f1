// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon as a virtio device: configuration space, activation, and one dispatch over queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mm::range_set::RangeSet;
use mm::units::{BlockId, Bytes, GuestRange, Pages, Pfn};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use zerocopy::{FromBytes, IntoBytes};

use super::evacuate::Evacuations;
use super::hinting::Hinting;
use super::ledger::Fill;
use super::pages::merge;
use super::pool::{PATIENCE, Pool};
use super::protocol::{
    BLOCK_MAX, BlocksHeader, BlocksOp, BlocksStatus, Config, DEVICE_TYPE, EvacuationAnswer,
    EvacuationRequest, decode_block, decode_pfn, feature,
};
use super::reclaim::MemoryReclaim;
use super::roles::{self, Role};
use super::stats::{MAX_ENTRIES, Statistics};
use super::timer::Timer;
use super::{BalloonConfig, BalloonError};
use crate::throttle::Throttle;
use crate::virtio::{
    Activation, Chain, ChainError, DeviceFailure, DeviceQueue, GuestMemory, Interrupt, QueueError,
    Segments, VirtioDevice, read_config_slice,
};

const NAME: &str = "balloon";
/// Entries of every queue; one size for all, as a number's role depends on the driver's choice.
const QUEUE_SIZE: u16 = 256;
/// Most page numbers in one buffer. Linux sends 256.
const MAX_PFNS: usize = 4096;
/// Bytes of one page number on the wire.
const PFN_BYTES: usize = 4;
/// Bytes of one block number on the wire.
const BLOCK_BYTES: usize = 8;
/// Longest that one turn of giving memory back keeps the event loop.
const TURN: Duration = Duration::from_millis(4);

/// The balloon device.
pub struct Balloon {
    // What the transport sees.
    pub(super) features: u64,
    queue_sizes: Vec<u16>,
    pub(super) config: Config,
    pub(super) active: Option<Active>,

    // The memory.
    pub(super) pool: Pool,
    /// What the last buffer put in, if it was one page or one block: half of a migration.
    moved_in: Option<Moved>,
    scratch: Vec<Pfn>,

    // Conversations with the driver.
    pub(super) hinting: Hinting,
    pub(super) statistics: Statistics,
    pub(super) stats_interval: Duration,
    /// The statistics buffer that waits for the next poll.
    stats_buffer: Option<u16>,
    pub(super) evacuations: Evacuations,
    /// The buffer that waits for the next request to vacate blocks.
    evacuation_buffer: Option<(u16, Segments)>,

    // What is done later.
    pub(super) timer: Timer,
    next_tick: Option<Instant>,
    pub(super) next_poll: Option<Instant>,
    log: Throttle,
}

/// What there is while a driver is up.
pub(super) struct Active {
    pub(super) features: u64,
    interrupt: Arc<dyn Interrupt>,
    roles: Vec<Role>,
    queues: Vec<DeviceQueue>,
}

/// One page or one block that went into the balloon by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    Page,
    Block,
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
            | offer(!config.stats_interval.is_zero(), feature::STATS_VQ)
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

    pub(super) fn target(&self) -> Pages {
        Pages(self.config.num_pages.get().into())
    }

    /// Gives the statistics buffer back, which makes the driver send the next; whether it could.
    pub(super) fn return_stats_buffer(&mut self) -> bool {
        let Some(active) = &mut self.active else { return false };
        let Some(queue) = active.queue(Role::Stats) else { return false };
        let Some(head) = self.stats_buffer.take() else { return false };
        match queue.push(head, 0).and_then(|()| queue.signal()) {
            Ok(()) => true,
            Err(error) => {
                self.note(&error);
                false
            }
        }
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
                self.take_answers(queue)?;
                self.send_evacuation(queue)?;
                queue.rearm()
            }
        }
    }

    /// Pages into the balloon. Returns with everything given back that need not wait.
    fn inflate(&mut self, mem: &GuestMemory, buffer: Result<Segments, ChainError>) {
        self.pool.counters.inflate_count += 1;
        let Some(pfns) = self.read_pfns(mem, buffer) else { return };
        let before = self.pool.ledger.ballooned();
        let mut new = 0;
        let pool = &mut self.pool;
        let named = self.scratch.len();
        let dropped = merge(&mut self.scratch, |run| new += pool.inflate(run).0);
        pool.counters.refused_pages += dropped;
        pool.settle_inflate();
        self.moved_in = (named == 1 && new == 1).then_some(Moved::Page);
        debug_assert_eq!(named, pfns);
        self.check_target(before);
    }

    /// Pages out of the balloon: from here on they are never discarded.
    fn deflate(&mut self, mem: &GuestMemory, buffer: Result<Segments, ChainError>) {
        self.pool.counters.deflate_count += 1;
        let Some(pfns) = self.read_pfns(mem, buffer) else { return };
        let mut gone = 0;
        let pool = &mut self.pool;
        let dropped = merge(&mut self.scratch, |run| gone += pool.deflate(run).0);
        pool.counters.refused_pages += dropped;
        pool.settle_deflate();
        if pfns == 1 && gone == 1 && self.moved_in.take() == Some(Moved::Page) {
            pool.counters.migrated_pages += 1;
        }
        self.moved_in = None;
    }

    /// Reads the page numbers of `buffer` into `scratch`; returns how many there are.
    fn read_pfns(
        &mut self,
        mem: &GuestMemory,
        buffer: Result<Segments, ChainError>,
    ) -> Option<usize> {
        let buffer = self.usable(buffer)?;
        if buffer.readable_len() > (MAX_PFNS * PFN_BYTES) as u64 {
            self.bad_buffer(&"more page numbers than one buffer may have");
            return None;
        }
        self.scratch.clear();
        let mut raw = [0; 256 * PFN_BYTES];
        let mut offset = 0;
        loop {
            let len = buffer.read(mem, offset, &mut raw);
            let (pfns, _cut_off) = raw[..len].as_chunks::<PFN_BYTES>();
            self.scratch.extend(pfns.iter().copied().map(decode_pfn));
            offset += len as u64;
            if len < raw.len() {
                return Some(self.scratch.len());
            }
        }
    }

    /// The guest has given all that it was asked for by what it gave just now.
    ///
    /// Not so for a migration: its page is one more, until the other half comes.
    fn check_target(&mut self, before: Pages) {
        let target = self.target();
        if before < target && self.pool.ledger.ballooned() >= target {
            self.pool.hurry();
        }
    }

    /// A request on the block queue; returns the bytes written.
    fn blocks(&mut self, mem: &GuestMemory, buffer: Result<Segments, ChainError>) -> u32 {
        let Some(buffer) = self.usable(buffer) else { return 0 };
        let room = size_of::<BlocksStatus>();
        if buffer.writable_len() < room as u64 {
            self.bad_buffer(&"block request without room for its status");
            return 0;
        }
        let status = self.block_request(mem, &buffer);
        if status == BlocksStatus::Ok {
            self.pool.counters.block_requests += 1;
        } else {
            self.pool.counters.block_refusals += 1;
            if let Some(suppressed) = self.log.admit() {
                tracing::warn!(suppressed, ?status, "balloon: block request refused");
            }
        }
        u32::try_from(buffer.write(mem, 0, &status.to_le_bytes())).unwrap_or(0)
    }

    fn block_request(&mut self, mem: &GuestMemory, buffer: &Segments) -> BlocksStatus {
        let mut raw = [0; size_of::<BlocksHeader>()];
        let got = buffer.read(mem, 0, &mut raw);
        let Ok(header) = BlocksHeader::read_from_bytes(&raw[..got]) else {
            return BlocksStatus::BadRequest;
        };
        let count = header.count.get();
        let op = BlocksOp::from(header.op.get());
        if count == 0 || count > BLOCK_MAX || matches!(op, BlocksOp::Unsupported(_)) {
            return BlocksStatus::BadRequest;
        }
        let mut entries = [0; BLOCK_MAX as usize * BLOCK_BYTES];
        let entries = &mut entries[..count as usize * BLOCK_BYTES];
        if buffer.read(mem, raw.len() as u64, entries) < entries.len() {
            return BlocksStatus::BadRequest;
        }
        let Some(blocks) = self.check_blocks(entries.as_chunks().0) else {
            return BlocksStatus::BadBlock;
        };
        let wanted = match op {
            BlocksOp::Inflate => 0,
            _ => mm::units::PAGES_PER_BLOCK,
        };
        if blocks.iter().any(|(_, range)| self.pool.ledger.count(*range) != Pages(wanted)) {
            return BlocksStatus::BadState;
        }
        let before = self.pool.ledger.ballooned();
        let lone = blocks.len() == 1;
        if op == BlocksOp::Inflate {
            for (block, range) in &blocks {
                self.pool.inflate(*range);
                // Given up because we asked: on top of the target, or it would come right back.
                if self.evacuations.asks_for(*block) {
                    self.raise_target(range.pages());
                }
            }
            self.pool.counters.inflated_blocks += u64::from(count);
            self.pool.settle_inflate();
            self.moved_in = lone.then_some(Moved::Block);
            self.check_target(before);
        } else {
            for (_, range) in &blocks {
                self.pool.deflate(*range);
            }
            self.pool.counters.deflated_blocks += u64::from(count);
            self.pool.settle_deflate();
            if self.moved_in.take() == Some(Moved::Block) && lone {
                self.pool.counters.migrated_blocks += 1;
            }
        }
        BlocksStatus::Ok
    }

    /// The blocks that `entries` name, ascending; `None` if any is no block of RAM or there twice.
    fn check_blocks(&self, entries: &[[u8; BLOCK_BYTES]]) -> Option<Vec<(BlockId, GuestRange)>> {
        let mut blocks = Vec::with_capacity(entries.len());
        for entry in entries {
            let block = decode_block(*entry)?;
            let range = block.checked_range()?;
            if !self.pool.ledger.is_ram(range) {
                return None;
            }
            blocks.push((block, range));
        }
        blocks.sort_unstable();
        let twice = blocks.windows(2).any(|pair| pair[0] == pair[1]);
        (!twice).then_some(blocks)
    }

    /// Free pages, reported as they became free; the driver holds them until the buffer is used.
    fn report(&mut self, buffer: Result<Segments, ChainError>, poisoned: bool) {
        let Some(buffer) = self.usable(buffer) else { return };
        if !poisoned {
            let ranges = page_ranges(&buffer);
            self.pool.discard_free(ranges.iter(), |counters| &mut counters.free_page_report);
        }
    }

    /// A command id, or free pages; returns whether the driver must be told of a new command.
    fn hint(
        &mut self,
        mem: &GuestMemory,
        buffer: Result<Segments, ChainError>,
        poisoned: bool,
    ) -> bool {
        let Some(buffer) = self.usable(buffer) else { return false };
        let mut command = [0; 4];
        let told = match buffer.read(mem, 0, &mut command) {
            0 => false,
            4 => self.hinting.guest_command(u32::from_le_bytes(command)),
            _ => {
                self.bad_buffer(&"command id cut off");
                return false;
            }
        };
        if buffer.writable.is_empty() {
            return told;
        }
        if self.hinting.running() {
            if !poisoned {
                let ranges = page_ranges(&buffer);
                self.pool.discard_free(ranges.iter(), |counters| &mut counters.free_page_hint);
            }
        } else {
            self.pool.counters.stale_hints += 1;
        }
        told
    }

    /// Whether free pages hold a pattern that the guest will look for (virtio 1.3, 5.5.6.7): a
    /// discarded page reads as zero.
    fn poisoned(&self, features: u64) -> bool {
        features & feature::PAGE_POISON != 0 && self.config.poison_val.get() != 0
    }

    /// Reads statistics, and keeps the buffer until the next poll.
    fn take_statistics(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            match self.usable(Segments::collect(chain, queue.size())) {
                Some(buffer) => {
                    let mut raw = [0; MAX_ENTRIES * size_of::<super::protocol::Stat>()];
                    let len = buffer.read(&mem, 0, &mut raw);
                    let unknown = self.statistics.update(&raw[..len]);
                    self.pool.counters.stats_updates_count += 1;
                    self.pool.counters.stats_unknown += unknown;
                }
                None => self.pool.counters.stats_update_fails += 1,
            }
            // One is enough to poll with; a driver that sends more gets the older one back.
            if let Some(older) = self.stats_buffer.replace(head) {
                queue.push(older, 0)?;
            }
        }
        queue.finish()
    }

    /// Reads answers to requests to vacate blocks, and keeps the last buffer for the next request.
    fn take_answers(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            let Some(buffer) = self.usable(Segments::collect(chain, queue.size())) else {
                queue.push(head, 0)?;
                continue;
            };
            self.take_answer(&mem, &buffer);
            if buffer.writable_len() < size_of::<EvacuationRequest>() as u64 {
                self.bad_buffer(&"no room for a request to vacate blocks");
                queue.push(head, 0)?;
            } else if let Some((older, _)) = self.evacuation_buffer.replace((head, buffer)) {
                queue.push(older, 0)?;
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, mem: &GuestMemory, buffer: &Segments) {
        if buffer.readable.is_empty() {
            return;
        }
        let mut raw = [0; size_of::<EvacuationAnswer>()];
        let got = buffer.read(mem, 0, &mut raw);
        let Ok(answer) = EvacuationAnswer::read_from_bytes(&raw[..got]) else {
            return self.bad_buffer(&"answer to a request to vacate blocks is cut off");
        };
        if answer.id.get() == 0 {
            return;
        }
        let mut outcomes = [0; BLOCK_MAX as usize];
        let got = buffer.read(mem, raw.len() as u64, &mut outcomes);
        let ledger = &self.pool.ledger;
        let in_balloon = |block| ledger.fill(block) == Fill::Full;
        match self.evacuations.answer(&answer, &outcomes[..got], in_balloon) {
            Ok(vacated) => {
                self.pool.counters.evacuations += 1;
                self.pool.counters.vacated_blocks += vacated;
            }
            Err(lie) => {
                self.pool.counters.evacuation_lies += 1;
                self.note(&format_args!("answer to a request to vacate blocks {lie}"));
            }
        }
    }

    /// Sends the next request to vacate blocks, if there is one and a buffer for it.
    fn send_evacuation(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        if self.evacuation_buffer.is_some()
            && let Some(request) = self.evacuations.next()
            && let Some((head, buffer)) = self.evacuation_buffer.take()
        {
            let written = buffer.write(queue.mem(), 0, request.as_bytes());
            queue.push(head, u32::try_from(written).unwrap_or(0))?;
        }
        queue.signal()
    }

    /// Sends what the host has just asked for, if the driver is ready for it.
    pub(super) fn kick_evacuations(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        if let Some(queue) = active.queue(Role::Evacuations)
            && let Err(error) = self.send_evacuation(queue)
        {
            self.note(&error);
        }
        self.active = Some(active);
        self.set_timer();
    }

    fn raise_target(&mut self, by: Pages) {
        let raised = self.target().0.saturating_add(by.0).min(self.pool.ledger.ram().0);
        if let Ok(raised) = u32::try_from(raised) {
            self.config.num_pages = raised.into();
        }
    }

    fn usable(&mut self, buffer: Result<Segments, ChainError>) -> Option<Segments> {
        buffer.map_err(|error| self.bad_buffer(&error)).ok()
    }

    fn bad_buffer(&mut self, cause: &dyn std::fmt::Display) {
        self.pool.counters.bad_buffers += 1;
        self.note(cause);
    }

    fn note(&mut self, cause: &dyn std::fmt::Display) {
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

    /// Hints run in the vCPU that notifies. The driver puts a hinted page where the guest may take
    /// it again as soon as it has notified (Linux `get_free_page_and_send`); by then the page has
    /// been discarded, and nothing of the guest's can be lost.
    fn runs_at_notify(&self, queue: u16) -> bool {
        match &self.active {
            Some(active) => active.role(queue) == Some(Role::Hints),
            None => roles::possible(self.features, queue, Role::Hints),
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

    fn process(&mut self, queue: u16) -> Result<(), DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let result = self.dispatch(&mut active, queue);
        self.active = Some(active);
        self.set_timer();
        result.map_err(|error| DeviceFailure::new(NAME, error))
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

/// The whole pages that the writable part of `buffer` names, each once.
fn page_ranges(buffer: &Segments) -> RangeSet {
    let ranges = buffer.writable.iter();
    ranges
        .filter_map(|segment| GuestRange::inside_bytes(segment.addr, Bytes(segment.len.into())))
        .collect()
}
