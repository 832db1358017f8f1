// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue as its device uses it, and descriptor chains checked before use.
//!
//! Everything read here was written by the guest. A chain may loop, may be longer than the standard
//! allows, may end in the middle or name memory that is not RAM: [`Segments`] tells a device what
//! is really there, or why it must leave the buffer alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::{GuestMemoryMmap, Interrupt};

/// One buffer of the driver's, as a chain of descriptors.
pub type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

/// A queue that cannot be used any further: its rings are not where the driver said.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {source}")]
pub struct QueueError {
    /// Number of the queue.
    pub queue: u16,
    /// What is wrong with it.
    pub source: virtio_queue::Error,
}

/// A buffer that a device must not use; the queue itself is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More descriptors than the queue has, so a loop or an oversized indirect table
    /// (virtio 1.3, 2.7.5.3.1).
    #[error("descriptor chain longer than the {limit} entries of the queue")]
    TooLong {
        /// Descriptors that a chain of this queue may have.
        limit: u16,
    },
    /// The last descriptor names a next one that does not exist.
    #[error("descriptor chain is cut off after {descriptors} entries")]
    CutOff {
        /// Descriptors that could be read.
        descriptors: usize,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.3, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    OutOfOrder,
    /// A descriptor reaches outside guest RAM.
    #[error("{len} bytes at {addr:#x} are not guest RAM")]
    OutsideRam {
        /// First guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// A run of guest memory that one descriptor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// The checked contents of one descriptor chain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
}

impl Segments {
    /// Walks `chain`, at most `limit` descriptors, and checks each against the memory's bounds.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain is too long, out of order, or a buffer of it is not in guest RAM.
    pub fn collect(chain: Chain, limit: u16) -> Result<Self, ChainError> {
        let segments = Self::collect_unplaced(chain.clone(), limit)?;
        let mem = chain.memory();
        for segment in &segments.readable {
            segment.check(mem, Permissions::Read)?;
        }
        for segment in &segments.writable {
            segment.check(mem, Permissions::Write)?;
        }
        Ok(segments)
    }

    /// As [`collect`](Self::collect), for devices that look at every address themselves: free page
    /// reports are ranges to give back, and not memory to be read or written.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain is too long, or out of order.
    pub fn collect_unplaced(chain: Chain, limit: u16) -> Result<Self, ChainError> {
        let mut segments = Self::default();
        let mut seen = 0;
        let mut more = true;
        for descriptor in chain {
            if seen == usize::from(limit) {
                return Err(ChainError::TooLong { limit });
            }
            seen += 1;
            more = descriptor.has_next();
            let segment = Segment { addr: descriptor.addr(), len: descriptor.len() };
            if descriptor.is_write_only() {
                segments.writable.push(segment);
            } else if segments.writable.is_empty() {
                segments.readable.push(segment);
            } else {
                return Err(ChainError::OutOfOrder);
            }
        }
        match more {
            false => Ok(segments),
            // virtio-queue stops by itself after as many descriptors as the table has.
            true if seen == usize::from(limit) => Err(ChainError::TooLong { limit }),
            true => Err(ChainError::CutOff { descriptors: seen }),
        }
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Copies readable bytes from `offset` on into `data`; returns how many there were.
    ///
    /// The caller sizes `data` by a limit of its own, never by a length of the guest's.
    pub fn read(&self, mem: &GuestMemoryMmap, offset: u64, data: &mut [u8]) -> usize {
        let mut filled = 0;
        for (at, len) in pieces(&self.readable, offset, data.len()) {
            let to = &mut data[filled..filled + len];
            if mem.read_slice(to, at).is_err() {
                break;
            }
            filled += len;
        }
        filled
    }

    /// Copies `data` to the writable bytes from `offset` on; returns how many there was room for.
    pub fn write(&self, mem: &GuestMemoryMmap, offset: u64, data: &[u8]) -> usize {
        let mut written = 0;
        for (at, len) in pieces(&self.writable, offset, data.len()) {
            if mem.write_slice(&data[written..written + len], at).is_err() {
                break;
            }
            written += len;
        }
        written
    }
}

impl Segment {
    fn check(&self, mem: &GuestMemoryMmap, access: Permissions) -> Result<(), ChainError> {
        let outside = ChainError::OutsideRam { addr: self.addr.0, len: self.len };
        let len = usize::try_from(self.len).map_err(|_| outside)?;
        if mem.check_range(self.addr, len, access) { Ok(()) } else { Err(outside) }
    }
}

/// The contiguous pieces of `segments` that make up `len` bytes from `offset` on.
pub(super) fn pieces(
    segments: &[Segment],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let size = u64::from(segment.len);
        if left == 0 || skip >= size {
            skip = skip.saturating_sub(size);
            return None;
        }
        let start = std::mem::take(&mut skip);
        let piece = usize::try_from(size - start).unwrap_or(usize::MAX).min(left);
        left -= piece;
        Some((GuestAddress(segment.addr.0.checked_add(start)?), piece))
    })
}

/// One queue from the device's side: its rings, its number, and the way back to the driver.
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
    /// `kick` is the event by which the driver notifies it. The transport clears `running` when
    /// the driver stops the queue; from then on the device finds it empty.
    pub fn new(
        index: u16,
        queue: Queue,
        mem: Arc<GuestMemoryMmap>,
        interrupt: Arc<dyn Interrupt>,
        kick: EventFd,
        running: Arc<AtomicBool>,
    ) -> Self {
        Self { index, queue, mem, interrupt: InterruptHandle(interrupt), kick, running }
    }

    /// Number of the queue, as the driver counts.
    pub fn index(&self) -> u16 {
        self.index
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
    /// [`QueueError`]: the available ring makes no sense.
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

    /// Leaves the buffer that `pop` gave last to be given again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the buffer headed by `head` back to the driver, `written` bytes of it written.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the used ring cannot be written.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        if !self.ready() {
            return Ok(());
        }
        let result = self.queue.add_used(&*self.mem, head, written);
        result.map_err(|source| self.error(source))
    }

    /// Interrupts the driver if it wants to know of the buffers given back since the last call.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: the rings cannot be read, or the interrupt cannot be raised.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if !self.ready() {
            return Ok(());
        }
        let needed = self.queue.needs_notification(&*self.mem);
        if needed.map_err(|source| self.error(source))?
            && let Err(error) = self.interrupt.0.signal_used_queue(self.index)
        {
            tracing::warn!(queue = self.index, %error, "cannot interrupt the driver");
        }
        Ok(())
    }

    /// Asks to be notified of the next buffer. Where more have come meanwhile, the queue notifies
    /// itself, so that one call of `process` never lasts longer than the queue is deep.
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

    /// Makes the event loop come back to this queue.
    pub fn kick_self(&self) {
        // It fails only when the counter is full, and then the loop comes back anyway.
        let _ = self.kick.write(1);
    }

    fn error(&self, source: virtio_queue::Error) -> QueueError {
        QueueError { queue: self.index, source }
    }
}
