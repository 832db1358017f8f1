// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue as its device uses it: buffers taken from the driver and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use mm::guest_ram::GuestMemoryMmap;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::notify::Interrupt;

/// One buffer of the driver's, as a chain of descriptors.
pub type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

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
/// queue.finish()?;
/// ```
#[derive(Debug)]
pub struct DeviceQueue {
    index: u16,
    queue: Queue,
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
        Self { index, queue, mem, interrupt, kick, running, unsignalled: 0 }
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
        RingAddresses {
            descriptors: GuestAddress(self.queue.desc_table()),
            available: GuestAddress(self.queue.avail_ring()),
            used: GuestAddress(self.queue.used_ring()),
        }
    }

    /// Entries of its rings, as the driver chose.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver set it up and has not stopped it.
    pub fn ready(&self) -> bool {
        self.queue.ready() && self.running.load(Ordering::Acquire)
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
        if !self.ready() {
            return Ok(None);
        }
        let chain = self.queue.iter(Arc::clone(&self.mem)).map(|mut buffers| buffers.next());
        let chain = chain.map_err(|source| self.error(source))?;
        match chain {
            Some(chain) if chain.head_index() >= self.size() => {
                Err(self.error(virtio_queue::Error::InvalidDescriptorIndex))
            }
            chain => Ok(chain),
        }
    }

    /// Undoes the last `pop`, which will return the same buffer again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns the buffer headed by `head` to the driver, with `written` bytes written.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the used ring cannot be written.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(&[(head, written)])
    }

    /// [`push`](Self::push) of several buffers, which the driver finds all at once: those of one
    /// packet, for example.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the used ring cannot be written.
    pub fn push_all(&mut self, buffers: &[(u16, u32)]) -> Result<(), QueueError> {
        if !self.ready() || buffers.is_empty() {
            return Ok(());
        }
        self.write_used(buffers).map_err(|source| self.error(source))
    }

    /// Used ring (virtio 1.3, 2.7.8): flags, index, then an element of head and length a buffer.
    fn write_used(&mut self, buffers: &[(u16, u32)]) -> Result<(), virtio_queue::Error> {
        let ring = GuestAddress(self.queue.used_ring());
        let at = |offset| ring.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow);
        let mut next = self.queue.next_used();
        for (head, written) in buffers {
            if *head >= self.queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex);
            }
            let slot = u64::from(next % self.queue.size());
            let element = [u32::from(*head).to_le(), written.to_le()];
            self.mem
                .write_obj(element, at(4 + 8 * slot)?)
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        let stored = self.mem.store(next.to_le(), at(2)?, Ordering::Release);
        stored.map_err(virtio_queue::Error::GuestMemory)?;
        self.unsignalled =
            self.unsignalled.saturating_add(next.wrapping_sub(self.queue.next_used()));
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Interrupts the driver for buffers returned since the last call, unless it suppresses
    /// interrupts.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the rings cannot be read, or the interrupt cannot be raised.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if !self.ready() || self.unsignalled == 0 {
            return Ok(());
        }
        if self.wants_interrupt().map_err(|source| self.error(source))?
            && let Err(error) = self.interrupt.0.signal_used_queue(self.index)
        {
            tracing::warn!(queue = self.index, %error, "cannot interrupt the driver");
        }
        self.unsignalled = 0;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the buffers given back last (virtio 1.3, 2.7.7).
    fn wants_interrupt(&self) -> Result<bool, virtio_queue::Error> {
        // The index of the used ring is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let ring = GuestAddress(self.queue.avail_ring());
        let at = |offset| ring.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow);
        let read = |at| {
            let value = self.mem.load::<u16>(at, Ordering::Relaxed).map(u16::from_le);
            value.map_err(virtio_queue::Error::GuestMemory)
        };
        if !self.queue.event_idx_enabled() {
            let no_interrupt = VRING_AVAIL_F_NO_INTERRUPT as u16;
            return Ok(read(ring)? & no_interrupt == 0);
        }
        // The driver names the buffer behind which it wants one: is it among the last?
        let event = read(at(4 + 2 * u64::from(self.queue.size()))?)?;
        let behind = self.queue.next_used().wrapping_sub(event).wrapping_sub(1);
        Ok(behind < self.unsignalled)
    }

    /// Asks to be notified of the next buffer. If more have arrived, the queue notifies itself, so
    /// that one call of `process` handles at most one queue depth of buffers.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the rings cannot be read or written.
    pub fn rearm(&mut self) -> Result<(), QueueError> {
        if !self.ready() {
            return Ok(());
        }
        let more = self.queue.enable_notification(&*self.mem);
        if more.map_err(|source| self.error(source))? {
            self.kick_self();
        }
        Ok(())
    }

    /// [`signal`](Self::signal) and [`rearm`](Self::rearm): the end of a round.
    ///
    /// # Errors
    ///
    /// Those of [`signal`](Self::signal) and [`rearm`](Self::rearm).
    pub fn finish(&mut self) -> Result<(), QueueError> {
        self.signal()?;
        self.rearm()
    }

    /// Schedules another round of this queue.
    pub fn kick_self(&self) {
        // It fails only when the counter is full, and then the loop returns anyway.
        let _ = self.kick.write(1);
    }

    fn error(&self, source: virtio_queue::Error) -> QueueError {
        QueueError { queue: self.index, source }
    }
}
