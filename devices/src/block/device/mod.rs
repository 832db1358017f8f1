// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device: rounds that take requests from a queue, drive their pieces, and complete them.
//!
//! - `active.rs`: the active state
//! - `disk.rs`: the image behind its engine
//! - `driving.rs`: requests in flight, moved on until they are over
//! - `intake.rs`: requests taken from a queue
//! - `settling.rs`: work that waits until no piece is in flight: another image, the end of a reset

mod active;
mod disk;
mod driving;
mod intake;
mod settling;

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use crate::block::disk_engine::RingConfig;
use crate::block::handle::{BlockCounters, BlockShared};
use crate::block::protocol::{BlockConfigSpace, DEVICE_TYPE, feature};
use crate::block::transfer::Transfers;
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
    /// The time, if it was read since requests were last waited for.
    now: Option<Instant>,
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
            now: None,
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
        active.tell();
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
        let Activation { features, interrupt, queues, .. } = activation;
        if !queues.iter().any(DeviceQueue::ready) {
            BlockCounters::add(&self.shared.counters.activate_fails, 1);
            return Err(DeviceFailure::new(NAME, "no queue was set up"));
        }
        let pending = self.shared.take_pending();
        self.apply(pending, None);
        let count = queues.len();
        self.active = Some(ActiveBlock {
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
