// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device: rounds that take requests from a queue, drive their pieces, and complete them.
//!
//! - `active.rs`: the active state
//! - `disk.rs`: the image behind its engine
//! - `intake.rs`: requests taken from a queue
//! - `settling.rs`: work that waits until no piece is in flight: another image, the end of a reset

mod active;
mod disk;
mod intake;
mod settling;

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use crate::block::disk_engine::{DiskAction, RingConfig, Started};
use crate::block::handle::{BlockCounters, BlockShared};
use crate::block::protocol::{BlockConfigSpace, DEVICE_TYPE, SECTOR, Status, feature};
use crate::block::request::{DiskOperation, DiskRequest};
use crate::block::transfer::{TransferStep, Transfers};
use crate::block::{BlockConfig, BlockHandle, DiskImage, MAX_QUEUES};
use crate::throttle::Throttle;
use crate::timer::Timer;
use crate::virtio::{
    Activation, BucketUpdate, Deadline, DeviceFailure, DeviceQueue, EventSource, Progress,
    RateLimiter, VirtioDevice, read_config_slice,
};

use active::{ActiveBlock, Waiting};
use disk::Disk;

const NAME: &str = "block";
/// Entries of every queue, and so most descriptors of a request.
const QUEUE_SIZE: u16 = 256;

/// The block device.
pub struct BlockDevice {
    // What the transport sees.
    features: u64,
    queue_sizes: Vec<u16>,
    active: Option<ActiveBlock>,

    // The disk.
    disk: Disk,

    // Requests.
    limiter: RateLimiter,
    timer: Timer,
    transfers: Transfers,
    /// Transfers whose next piece can start.
    runnable: VecDeque<u16>,
    /// Transfers with a piece in flight.
    under_way: usize,
    /// The image that replaces the current one once no piece is in flight; no piece starts until
    /// then.
    replacing: Option<DiskImage>,
    /// What takes long to free.
    remains: Vec<Box<dyn Any + Send>>,

    shared: Arc<BlockShared>,
    log: Throttle,
}

impl BlockDevice {
    /// A disk as `config` says.
    ///
    /// # Errors
    ///
    /// The host cannot create an event or timer.
    pub fn new(config: BlockConfig) -> std::io::Result<Self> {
        let BlockConfig { image, cache, engine, limiter, queues, workers } = config;
        let queues = queues.clamp(1, MAX_QUEUES);
        let features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | if queues > 1 { feature::MQ } else { 0 };
        let shared = Arc::new(BlockShared::new(&image, EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?));
        let slots = queues * QUEUE_SIZE;
        let ring = RingConfig { wake: shared.wake.as_raw_fd(), slots, workers };
        let disk = Disk::open(image, cache, engine, ring);
        Ok(Self {
            features: features | disk.features(),
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            active: None,
            disk,
            limiter,
            timer: Timer::new()?,
            transfers: Transfers::new(slots),
            runnable: VecDeque::new(),
            under_way: 0,
            replacing: None,
            remains: Vec::new(),
            shared,
            log: Throttle::default(),
        })
    }

    /// State shared with other threads.
    pub fn handle(&self) -> BlockHandle {
        BlockHandle { shared: Arc::clone(&self.shared) }
    }

    /// Event sources of its thread in addition to the queues.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn sources(&self) -> std::io::Result<Vec<EventSource>> {
        // SAFETY: the event is open for as long as `shared` lives, which is longer than the borrow.
        let wake = unsafe { BorrowedFd::borrow_raw(self.shared.wake.as_raw_fd()) };
        let fds = [wake, self.timer.as_fd()];
        fds.iter().map(|fd| Ok(EventSource::readable(fd.try_clone_to_owned()?, 0))).collect()
    }

    #[cfg(test)]
    pub(super) fn set_engine(&mut self, engine: Box<dyn crate::block::disk_engine::DiskEngine>) {
        self.disk.engine = engine;
    }

    /// One round for queue `index`.
    fn round(
        &mut self,
        active: &mut ActiveBlock,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        self.disk.engine.notify(false);
        if index == 0 {
            self.wake_up(active);
        }
        let mut progress = Progress::Done;
        loop {
            self.reap(active)?;
            let more = self.start_pieces(active, deadline)? == Progress::More
                || self.take_requests(active, index, deadline)? == Progress::More;
            let all_submitted = self.disk.engine.submit().map_err(failure)?;
            if more || !all_submitted {
                progress = Progress::More;
            }
            // Cached data has already completed.
            self.disk.engine.notify(true);
            if self.under_way == 0 || !self.reap(active)? || progress == Progress::More {
                break;
            }
            self.disk.engine.notify(false);
        }
        active.tell().map_err(failure)?;
        let startable = !self.runnable.is_empty() && self.replacing.is_none();
        Ok(Progress::more_if(progress == Progress::More || startable))
    }

    /// The event or the timer may have been the reason of this round.
    fn wake_up(&mut self, active: &mut ActiveBlock) {
        // Watched edge-triggered: the event need not be read.
        let pending = self.shared.take_pending();
        let limited_anew = [pending.bytes, pending.ops] != [BucketUpdate::Keep; 2];
        self.apply(pending, Some(active));
        // Only then: a queue woken unnecessarily would wake itself again and again.
        if self.timer.acknowledge() || limited_anew {
            active.wake(Waiting::Limit);
        }
    }

    /// Collects completed pieces; returns whether there were any.
    fn reap(&mut self, active: &mut ActiveBlock) -> Result<bool, DeviceFailure> {
        let mut any = false;
        while let Some((token, result)) = self.disk.engine.reap() {
            self.under_way -= 1;
            any = true;
            self.ended(active, token, result)?;
        }
        self.replace_when_settled(Some(active));
        Ok(any)
    }

    fn ended(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        result: std::io::Result<u64>,
    ) -> Result<(), DeviceFailure> {
        let Some(transfer) = self.transfers.get_mut(token) else { return Ok(()) };
        match result {
            Ok(bytes) => {
                transfer.advance(bytes);
                self.runnable.push_back(token);
                Ok(())
            }
            Err(error) => {
                BlockCounters::add(&self.shared.counters.execute_fails, 1);
                let operation = transfer.request.operation;
                self.note(&format_args!("{operation:?} failed: {error}"));
                self.finish(active, token, Status::IoErr)
            }
        }
    }

    /// Starts the next piece of each transfer that has none in flight.
    fn start_pieces(
        &mut self,
        active: &mut ActiveBlock,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        if self.replacing.is_some() {
            // The last piece in flight makes the event loop return.
            return Ok(Progress::Done);
        }
        let size = self.disk.limits.sectors * SECTOR;
        while let Some(token) = self.runnable.pop_front() {
            if deadline.passed() {
                self.runnable.push_front(token);
                return Ok(Progress::More);
            }
            let limit = self.disk.engine.piece_limit();
            let Some(transfer) = self.transfers.get_mut(token) else { continue };
            let (action, offset, len) = match transfer.prepare(&active.mem, limit, size) {
                TransferStep::Piece { action, offset, len } => (action, offset, len),
                TransferStep::Finished => {
                    self.finish(active, token, Status::Ok)?;
                    continue;
                }
                TransferStep::Impossible => {
                    self.finish(active, token, Status::IoErr)?;
                    continue;
                }
            };
            deadline.charge(cost(action, len, self.disk.engine.works_at_once()));
            let piece = transfer.piece(action, offset, len);
            // SAFETY: the transfer stays in its slot, untouched, until `reap` has named its token,
            // and so do the vectors in it; `reset` and `drop` wait for that, or leak it.
            match unsafe { self.disk.engine.start(token, piece) } {
                Started::UnderWay => self.under_way += 1,
                Started::Done(result) => self.ended(active, token, result)?,
            }
        }
        Ok(Progress::Done)
    }

    /// Completes the request of `token` and drops it.
    fn finish(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        status: Status,
    ) -> Result<(), DeviceFailure> {
        let Some(transfer) = self.transfers.remove(token) else { return Ok(()) };
        let counters = &self.shared.counters;
        match transfer.request.operation {
            DiskOperation::Read { .. } => counters.read_agg.record(transfer.since.elapsed()),
            DiskOperation::Write { .. } => counters.write_agg.record(transfer.since.elapsed()),
            _ => {}
        }
        if status == Status::Ok {
            self.count(&transfer.request);
        }
        active.wake(Waiting::Room);
        let at = usize::from(transfer.queue);
        active.answer(at, transfer.head, &transfer.buffer, status).map_err(failure)?;
        self.transfers.keep(transfer);
        Ok(())
    }

    fn count(&self, request: &DiskRequest) {
        let counters = &self.shared.counters;
        let (count, bytes) = match request.operation {
            DiskOperation::Read { .. } => (&counters.read_count, Some(&counters.read_bytes)),
            DiskOperation::Write { .. } => (&counters.write_count, Some(&counters.write_bytes)),
            DiskOperation::Flush => (&counters.flush_count, None),
            DiskOperation::Discard { .. } | DiskOperation::WriteZeroes { .. } => {
                (&counters.discard_count, None)
            }
            DiskOperation::GetId => return,
        };
        BlockCounters::add(count, 1);
        if let Some(bytes) = bytes {
            BlockCounters::add(bytes, request.len);
        }
    }

    /// Configuration space.
    fn config(&self) -> BlockConfigSpace {
        BlockConfigSpace {
            capacity: self.shared.sectors().into(),
            seg_max: u32::from(QUEUE_SIZE - 2).into(),
            num_queues: (self.disk.ring.slots / QUEUE_SIZE).into(),
            ..self.disk.config()
        }
    }

    fn note(&mut self, cause: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.log.admit() {
            tracing::warn!(suppressed, "block: {cause}");
        }
    }
}

impl VirtioDevice for BlockDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn publishes_config(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_slice(self.config().as_bytes(), offset, data);
    }

    /// No field is the driver's to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        BlockCounters::add(&self.shared.counters.cfg_fails, 1);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let Activation { mem, features, interrupt, queues } = activation;
        if !queues.iter().any(DeviceQueue::ready) {
            BlockCounters::add(&self.shared.counters.activate_fails, 1);
            return Err(DeviceFailure::new(NAME, "no queue was set up"));
        }
        let pending = self.shared.take_pending();
        self.apply(pending, None);
        let count = queues.len();
        self.active = Some(ActiveBlock {
            mem,
            features,
            interrupt,
            queues,
            waiting: vec![None; count],
            answered: vec![false; count],
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.runnable.clear();
        self.timer.set(None);
    }

    fn clean_up(&mut self, deadline: &mut Deadline) -> Progress {
        self.settle_step(deadline)
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        if self.remains.is_empty() {
            None
        } else {
            Some(Box::new(std::mem::take(&mut self.remains)))
        }
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.round(&mut active, queue, deadline);
        self.active = Some(active);
        result
    }
}

impl Drop for BlockDevice {
    /// Waits for the host: guest memory goes after this.
    fn drop(&mut self) {
        self.settle();
    }
}

fn failure(cause: impl std::fmt::Display) -> DeviceFailure {
    DeviceFailure::new(NAME, cause)
}

/// Cost of starting a piece, in units of [`Deadline`].
fn cost(action: DiskAction, len: u64, works_at_once: bool) -> u64 {
    match (works_at_once, action) {
        (false, _) => Deadline::ENTRY,
        (true, DiskAction::Read | DiskAction::Write) => len,
        (true, _) => Deadline::SYSCALL,
    }
}
