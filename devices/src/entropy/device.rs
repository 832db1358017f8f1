// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device: one queue of buffers to fill.

use std::os::fd::AsFd;
use std::sync::Arc;

use mm::units::SaturatingInto;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{EntropyCounters, EntropyHandle};
use crate::throttle::Throttle;
use crate::timer::Timer;
use crate::virtio::{
    Activation, ChainMemory, Deadline, DeviceFailure, DeviceQueue, EventSource, Progress,
    QueueError, RateLimiter, VirtioDevice,
};

const NAME: &str = "entropy";
/// virtio 1.3, 5.4.1.
const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZE: u16 = 256;
/// Maximum number of bytes per buffer: the driver asks again for more
/// (virtio 1.3, 5.4.6.1 lets a device fill a buffer in part).
const MAX_BYTES: usize = 64 << 10;
/// Cost of a random byte, in bytes copied.
const COST: u64 = 8;

/// The entropy device.
pub struct Entropy {
    limiter: RateLimiter,
    queue: Option<DeviceQueue>,
    timer: Timer,
    /// The buffer that is filled; kept for its memory, as is the next.
    buffer: ChainMemory,
    scratch: Vec<u8>,
    counters: Arc<EntropyCounters>,
    log: Throttle,
}

impl Entropy {
    /// A device limited by `limiter`.
    ///
    /// # Errors
    ///
    /// The host cannot create a timer.
    pub fn new(limiter: RateLimiter) -> std::io::Result<Self> {
        Ok(Self {
            limiter,
            queue: None,
            timer: Timer::new()?,
            buffer: ChainMemory::default(),
            scratch: Vec::new(),
            counters: Arc::default(),
            log: Throttle::default(),
        })
    }

    /// State shared with other threads.
    pub fn handle(&self) -> EntropyHandle {
        EntropyHandle { counters: Arc::clone(&self.counters) }
    }

    /// Event sources of its thread in addition to the queue.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn sources(&self) -> std::io::Result<Vec<EventSource>> {
        Ok(vec![EventSource::readable(self.timer.as_fd().try_clone_to_owned()?, 0)])
    }

    #[cfg(test)]
    pub(super) fn set_limiter(&mut self, limiter: RateLimiter) {
        self.limiter = limiter;
    }

    /// Fills the first `len` bytes of the buffer; returns the bytes written.
    fn fill(&mut self, len: usize) -> u32 {
        self.scratch.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match getrandom(&mut self.scratch[filled..], GetRandomFlags::NONBLOCK) {
                Ok(count) if count > 0 => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                _ => {
                    EntropyCounters::add(&self.counters.host_rng_fails, 1);
                    break;
                }
            }
        }
        let written = self.buffer.writable.write(0, &self.scratch[..filled]);
        EntropyCounters::add(&self.counters.bytes, written as u64);
        written.saturating_u32()
    }

    fn serve(
        &mut self,
        queue: &mut DeviceQueue,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        EntropyCounters::add(&self.counters.queue_event_count, 1);
        for _ in 0..queue.size() {
            if deadline.passed() {
                queue.signal();
                return Ok(Progress::More);
            }
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            deadline.charge(Deadline::COMMAND);
            if let Err(error) = self.buffer.refill(chain, queue.size()) {
                self.bad_buffer(&error);
                queue.push(head, 0)?;
                continue;
            }
            let len = self.buffer.writable.len().min(MAX_BYTES);
            if len == 0 {
                self.bad_buffer(&"empty request buffer");
                queue.push(head, 0)?;
                continue;
            }
            if let Err(at) = self.limiter.admit_now(len as u64, 1) {
                EntropyCounters::add(&self.counters.rate_limiter_throttled, 1);
                queue.undo_pop();
                self.timer.set(Some(at));
                // The timer wakes the device: the driver need not.
                queue.signal();
                return Ok(Progress::Done);
            }
            let written = self.fill(len);
            deadline.charge(COST.saturating_mul(len as u64));
            queue.push(head, written)?;
        }
        queue.finish();
        Ok(Progress::Done)
    }

    fn bad_buffer(&mut self, cause: &dyn std::fmt::Display) {
        EntropyCounters::add(&self.counters.event_fails, 1);
        if let Some(suppressed) = self.log.admit() {
            tracing::warn!(suppressed, "entropy: {cause}");
        }
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn publishes_config(&self) -> bool {
        true
    }

    /// The device has no configuration space (virtio 1.3, 5.4.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        match activation.queues.into_iter().next().filter(DeviceQueue::ready) {
            Some(queue) => {
                self.queue = Some(queue);
                Ok(())
            }
            None => {
                EntropyCounters::add(&self.counters.activate_fails, 1);
                Err(DeviceFailure::new(NAME, "its queue was not set up"))
            }
        }
    }

    fn reset(&mut self) {
        self.queue = None;
        self.timer.set(None);
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        if queue != 0 {
            return Ok(Progress::Done);
        }
        let Some(mut queue) = self.queue.take() else { return Ok(Progress::Done) };
        self.timer.acknowledge();
        let result = self.serve(&mut queue, deadline);
        self.queue = Some(queue);
        result.map_err(|error| DeviceFailure::new(NAME, error))
    }
}
