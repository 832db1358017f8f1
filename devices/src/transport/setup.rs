// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue as its driver describes it through registers, and the checks before it goes live.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use crate::virtio::GuestMemoryMmap;

/// Which ring an address register belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RingAddress {
    Descriptors,
    Available,
    Used,
}

/// Why a queue cannot be made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SetupError {
    #[error("queue size {size} is not a power of two of at most {max}")]
    Size { size: u32, max: u16 },
    #[error("{ring:?} ring at {addr:#x} is misaligned")]
    Alignment { ring: RingAddress, addr: u64 },
    #[error("{ring:?} ring of {len} bytes at {addr:#x} is not in one region of guest RAM")]
    OutsideRam { ring: RingAddress, addr: u64, len: usize },
}

/// The registers of one queue.
#[derive(Debug)]
pub(super) struct QueueSetup {
    pub(super) max_size: u16,
    pub(super) size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    ready: bool,
    /// Shared with the device's side of the queue, which the driver may stop at any time.
    pub(super) running: Arc<AtomicBool>,
}

impl QueueSetup {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            descriptors: 0,
            available: 0,
            used: 0,
            ready: false,
            running: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// Sets one half of a ring's address.
    pub(super) fn set_address(&mut self, ring: RingAddress, high: bool, value: u32) {
        let field = match ring {
            RingAddress::Descriptors => &mut self.descriptors,
            RingAddress::Available => &mut self.available,
            RingAddress::Used => &mut self.used,
        };
        *field = if high {
            (*field & 0xffff_ffff) | u64::from(value) << 32
        } else {
            (*field & !0xffff_ffff) | u64::from(value)
        };
    }

    /// Checks the queue and marks it ready.
    pub(super) fn enable(&mut self, mem: &GuestMemoryMmap) -> Result<(), SetupError> {
        self.build(mem)?;
        self.ready = true;
        Ok(())
    }

    /// The driver stops the queue: the device no longer accesses it.
    pub(super) fn stop(&mut self) {
        self.ready = false;
        self.running.store(false, Ordering::Release);
    }

    /// The queue for its device: ready if the driver made it so.
    ///
    /// Checked again: guest-written values are validated at each use.
    pub(super) fn start(&mut self, mem: &GuestMemoryMmap) -> Queue {
        // A fresh flag: a device that kept a queue from before a reset must not see it revived.
        self.running = Arc::new(AtomicBool::new(self.ready));
        let built = if self.ready { self.build(mem).ok() } else { None };
        built.unwrap_or_default()
    }

    /// A virtio-queue of these registers (virtio 1.3, 2.7: alignments and sizes of the rings).
    fn build(&self, mem: &GuestMemoryMmap) -> Result<Queue, SetupError> {
        let bad_size = SetupError::Size { size: self.size, max: self.max_size };
        let size = u16::try_from(self.size).map_err(|_| bad_size)?;
        let mut queue = Queue::new(self.max_size).map_err(|_| bad_size)?;
        queue.try_set_size(size).map_err(|_| bad_size)?;

        let misaligned = |ring, addr| SetupError::Alignment { ring, addr };
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .map_err(|_| misaligned(RingAddress::Descriptors, self.descriptors))?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .map_err(|_| misaligned(RingAddress::Available, self.available))?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .map_err(|_| misaligned(RingAddress::Used, self.used))?;

        let entries = usize::from(size);
        for (ring, addr, len) in [
            (RingAddress::Descriptors, self.descriptors, 16 * entries),
            (RingAddress::Available, self.available, 6 + 2 * entries),
            (RingAddress::Used, self.used, 6 + 8 * entries),
        ] {
            // virtio-queue treats an available ring at 0 as unset.
            if addr == 0 || mem.get_slice(GuestAddress(addr), len).is_err() {
                return Err(SetupError::OutsideRam { ring, addr, len });
            }
        }
        queue.set_ready(true);
        Ok(queue)
    }
}
