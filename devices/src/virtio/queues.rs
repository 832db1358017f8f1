// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue as its device uses it: buffers taken from the driver and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use mm::guest_ram::GuestMemoryMmap;
use mm::units::SaturatingInto;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::notify::Interrupt;
use super::rings::Rings;

/// A queue that cannot be used any further: its rings are invalid.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {source}")]
pub struct QueueError {
    /// Number of the queue.
    pub queue: u16,
    /// The error.
    pub source: virtio_queue::Error,
}

/// The device's side of one queue: its rings, its number, and its interrupt.
///
/// ```text
/// for _ in 0..queue.size() {
///     let Some(chain) = queue.pop()? else { break };
///     let head = chain.head_index();
///     ...
///     queue.push(head, written)?;
/// }
/// queue.finish();
/// ```
#[derive(Debug)]
pub struct DeviceQueue {
    index: u16,
    size: u16,
    addresses: RingAddresses,
    /// None if the driver did not set the queue up.
    rings: Option<Rings>,
    mem: Arc<GuestMemoryMmap>,
    interrupt: InterruptHandle,
    kick: EventFd,
    running: Arc<AtomicBool>,
    /// Buffers given back since the driver was last considered for an interrupt.
    unsignalled: u16,
}

/// Where the rings of a queue begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: GuestAddress,
    /// Available ring.
    pub available: GuestAddress,
    /// Used ring.
    pub used: GuestAddress,
}

struct InterruptHandle(Arc<dyn Interrupt>);

impl std::fmt::Debug for InterruptHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupt")
    }
}

impl DeviceQueue {
    /// Queue number `index` with the rings that `queue` says.
    ///
    /// `kick` is the event by which the driver notifies it. The transport clears `running` when the
    /// driver stops the queue; afterwards the device sees it as empty.
    pub fn new(
        index: u16,
        queue: Queue,
        mem: Arc<GuestMemoryMmap>,
        interrupt: Arc<dyn Interrupt>,
        kick: EventFd,
        running: Arc<AtomicBool>,
    ) -> Self {
        let interrupt = InterruptHandle(interrupt);
        let addresses = RingAddresses {
            descriptors: GuestAddress(queue.desc_table()),
            available: GuestAddress(queue.avail_ring()),
            used: GuestAddress(queue.used_ring()),
        };
        let rings = Rings::locate(&queue, Arc::clone(&mem));
        let size = queue.size();
        Self { index, size, addresses, rings, mem, interrupt, kick, running, unsignalled: 0 }
    }

    /// Number of the queue, as the driver counts.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The event by which the driver notifies it.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Where its rings are.
    pub fn rings(&self) -> RingAddresses {
        self.addresses
    }

    /// Entries of its rings, as the driver chose.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver set it up and has not stopped it.
    pub fn ready(&self) -> bool {
        self.rings.is_some() && self.running.load(Ordering::Acquire)
    }

    /// Guest RAM.
    pub fn mem(&self) -> &Arc<GuestMemoryMmap> {
        &self.mem
    }

    /// Takes the next buffer that the driver has made available.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the available ring is invalid.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let queue = self.index;
        let Some(rings) = self.live() else { return Ok(None) };
        let head = rings.pop().map_err(|source| QueueError { queue, source })?;
        Ok(head.map(|head| Chain::new(rings, head)))
    }

    /// Undoes the last `pop`, which will return the same buffer again.
    pub fn undo_pop(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.undo_pop();
        }
    }

    /// The rings, unless the driver has stopped the queue.
    fn live(&mut self) -> Option<&mut Rings> {
        let running = self.running.load(Ordering::Acquire);
        self.rings.as_mut().filter(|_| running)
    }

    /// Returns the buffer headed by `head` to the driver, with `written` bytes written.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: `head` is no descriptor of the queue.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(&[(head, written)])
    }

    /// [`push`](Self::push) of several buffers, which the driver finds all at once: those of one
    /// packet, for example.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: a head is no descriptor of the queue.
    pub fn push_all(&mut self, buffers: &[(u16, u32)]) -> Result<(), QueueError> {
        let queue = self.index;
        let Some(rings) = self.live().filter(|_| !buffers.is_empty()) else { return Ok(()) };
        rings.push(buffers).map_err(|source| QueueError { queue, source })?;
        self.unsignalled = self.unsignalled.saturating_add(buffers.len().saturating_u16());
        Ok(())
    }

    /// Interrupts the driver for buffers returned since the last call, unless it suppresses
    /// interrupts.
    pub fn signal(&mut self) {
        let count = self.unsignalled;
        let Some(rings) = self.live().filter(|_| count > 0) else { return };
        // The index of the used ring is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        if rings.wants_interrupt(count)
            && let Err(error) = self.interrupt.0.signal_used_queue(self.index)
        {
            tracing::warn!(queue = self.index, %error, "cannot interrupt the driver");
        }
        self.unsignalled = 0;
    }

    /// Asks to be notified of the next buffer. If more have arrived, the queue notifies itself, so
    /// that one call of `process` handles at most one queue depth of buffers.
    pub fn rearm(&mut self) {
        let Some(rings) = self.live() else { return };
        rings.ask_for_notification();
        // The wish is visible before the index of the available ring is read.
        fence(Ordering::SeqCst);
        if rings.has_more() {
            self.kick_self();
        }
    }

    /// [`signal`](Self::signal) and [`rearm`](Self::rearm): the end of a round.
    pub fn finish(&mut self) {
        self.signal();
        self.rearm();
    }

    /// Schedules another round of this queue.
    pub fn kick_self(&self) {
        // It fails only when the counter is full, and then the loop returns anyway.
        let _ = self.kick.write(1);
    }
}
