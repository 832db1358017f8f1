// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver for tests, benches and fuzzing: the other side of the protocol, through the registers
//! and rings of a real transport. It panics where a test has gone wrong, and it can misbehave on
//! purpose.

#![allow(clippy::missing_panics_doc, reason = "a mock panics where a test has gone wrong")]

use std::ops::Range;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MmioTransport, register};
use crate::virtio::{Deadline, GuestMemoryMmap, QueueHost, SharedDevice};

/// Entries of each queue that the driver sets up, unless the device has fewer.
const QUEUE_SIZE: u16 = 64;

/// One descriptor in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MockDescriptor {
    /// Guest-physical address of its buffer.
    pub addr: u64,
    /// Length of it in bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// Number of the next one, with NEXT.
    pub next: u16,
}

impl MockDescriptor {
    /// A buffer that the device reads.
    pub fn readable(addr: GuestAddress, len: u32) -> Self {
        Self { addr: addr.0, len, flags: 0, next: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: GuestAddress, len: u32) -> Self {
        Self { addr: addr.0, len, flags: VRING_DESC_F_WRITE as u16, next: 0 }
    }

    /// As it is in a table (virtio 1.3, 2.7.5).
    fn raw(&self) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&self.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&self.len.to_le_bytes());
        raw[12..14].copy_from_slice(&self.flags.to_le_bytes());
        raw[14..].copy_from_slice(&self.next.to_le_bytes());
        raw
    }
}

/// The driver's side of one queue.
#[derive(Debug)]
struct MockQueue {
    size: u16,
    table: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
}

/// A driver of one device, in guest memory of its own.
pub struct MockDriver {
    transport: Arc<MmioTransport>,
    mem: Arc<GuestMemoryMmap>,
    irq: EventFd,
    area: Range<u64>,
    next: u64,
    queues: Vec<MockQueue>,
    queue_size: u16,
    features: u64,
}

impl MockDriver {
    /// A driver for `device`, with its rings and buffers in `area` of guest memory.
    pub fn new(mem: Arc<GuestMemoryMmap>, device: SharedDevice, area: Range<u64>) -> Self {
        Self::with_deadline(mem, device, area, Deadline::new)
    }

    /// As [`new`](Self::new); each round of the device gets a deadline of `deadline`'s.
    pub fn with_deadline(
        mem: Arc<GuestMemoryMmap>,
        device: SharedDevice,
        area: Range<u64>,
        deadline: fn() -> Deadline,
    ) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let theirs = irq.try_clone().expect("an eventfd");
        let transport = MmioTransport::new(Arc::clone(&mem), device, theirs).expect("a transport");
        let transport = transport.with_deadline(deadline);
        let next = area.start;
        Self {
            transport: Arc::new(transport),
            mem,
            irq,
            area,
            next,
            queues: Vec::new(),
            queue_size: QUEUE_SIZE,
            features: 0,
        }
    }

    /// Sets up queues of `entries`, a power of two, unless the device has fewer.
    #[must_use]
    pub fn with_queue_size(self, entries: u16) -> Self {
        Self { queue_size: entries, ..self }
    }

    /// The transport that it drives.
    pub fn transport(&self) -> &Arc<MmioTransport> {
        &self.transport
    }

    /// Guest RAM.
    pub fn mem(&self) -> &Arc<GuestMemoryMmap> {
        &self.mem
    }

    /// Where the available ring and the used ring of `queue` are.
    pub fn rings(&self, queue: u16) -> (GuestAddress, GuestAddress) {
        let ring = &self.queues[usize::from(queue)];
        (GuestAddress(ring.available), GuestAddress(ring.used))
    }

    /// Features that were agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Reads a register; one that the guest may read from a page must be the same there.
    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        let value = u32::from_le_bytes(word);
        if let Some(page) = self.transport.page().filter(|_| offset < register::CONFIG) {
            assert_eq!(page.read(offset), value, "register {offset:#x} in the page");
        }
        value
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads a field of configuration space.
    pub fn config(&self, offset: u64) -> u32 {
        self.read(register::CONFIG + offset)
    }

    /// Writes a field of configuration space.
    pub fn set_config(&self, offset: u64, value: u32) {
        self.write(register::CONFIG + offset, value);
    }

    /// Whether the device needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.read(register::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    /// Acknowledges the interrupt; returns its bits (virtio 1.3, 4.2.2: 1 for used buffers, 2
    /// for a new configuration).
    pub fn acknowledge(&self) -> u32 {
        let status = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, status);
        status
    }

    /// All that the device offers.
    pub fn offered(&self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.read(register::DEVICE_FEATURES));
        self.write(register::DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.read(register::DEVICE_FEATURES))
    }

    /// Resets the device and forgets all rings and buffers.
    pub fn reset(&mut self) {
        self.write(register::STATUS, 0);
        assert_eq!(self.read(register::STATUS), 0);
        self.queues.clear();
        self.next = self.area.start;
    }

    /// Initializes the device from reset to FEATURES_OK with those of `features` that it offers.
    pub fn negotiate(&mut self, features: u64) {
        self.reset();
        self.write(register::STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.write(register::STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
        self.features = (features | 1 << VIRTIO_F_VERSION_1) & self.offered();
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, (self.features >> 32) as u32);
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, (self.features & 0xffff_ffff) as u32);
        let status = self.read(register::STATUS) | VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(register::STATUS, status);
        assert_eq!(self.read(register::STATUS), status, "the device refused the features");
    }

    /// Sets up queue `index` with its own rings.
    pub fn set_up_queue(&mut self, index: u16) {
        self.write(register::QUEUE_SEL, index.into());
        let max = self.read(register::QUEUE_NUM_MAX);
        let size = u16::try_from(max).expect("a queue size").min(self.queue_size);
        assert!(size > 0, "there is no queue {index}");
        let entries = u64::from(size);
        let queue = MockQueue {
            size,
            table: self.alloc(16 * entries).0,
            available: self.alloc(6 + 2 * entries).0,
            used: self.alloc(6 + 8 * entries).0,
            next_available: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
        };
        for ring in [queue.available, queue.used] {
            self.mem.write_obj(0u32, GuestAddress(ring)).expect("ring in RAM");
        }
        self.write(register::QUEUE_NUM, size.into());
        for (low, addr) in [
            (register::QUEUE_DESC_LOW, queue.table),
            (register::QUEUE_DRIVER_LOW, queue.available),
            (register::QUEUE_DEVICE_LOW, queue.used),
        ] {
            self.write(low, (addr & 0xffff_ffff) as u32);
            self.write(low + 4, (addr >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
        assert_eq!(self.read(register::QUEUE_READY), 1, "the device refused queue {index}");
        self.queues.push(queue);
    }

    /// Sets DRIVER_OK.
    pub fn start(&mut self) {
        let status = self.read(register::STATUS) | VIRTIO_CONFIG_S_DRIVER_OK;
        self.write(register::STATUS, status);
    }

    /// From reset to DRIVER_OK with `queues` queues.
    pub fn probe(&mut self, features: u64, queues: u16) {
        self.negotiate(features);
        (0..queues).for_each(|queue| self.set_up_queue(queue));
        self.start();
        assert!(!self.needs_reset(), "the device failed its activation");
    }

    /// Allocates `len` bytes of the driver's memory, 16-aligned, until reset.
    pub fn alloc(&mut self, len: u64) -> GuestAddress {
        let at = self.next.next_multiple_of(16);
        self.next = at + len;
        assert!(self.next <= self.area.end, "the driver's memory is used up");
        GuestAddress(at)
    }

    /// Frees all buffers allocated since `mark`, a result of `alloc(0)`.
    pub fn release(&mut self, mark: GuestAddress) {
        self.next = mark.0;
    }

    /// Puts `bytes` into memory of the driver's.
    pub fn put(&mut self, bytes: &[u8]) -> GuestAddress {
        let addr = self.alloc(bytes.len() as u64);
        self.mem.write_slice(bytes, addr).expect("buffer in RAM");
        addr
    }

    /// Puts `buffers` into a table of memory of the driver's; returns the descriptor that names it.
    pub fn put_table(&mut self, buffers: &[MockDescriptor]) -> MockDescriptor {
        let mut table = Vec::new();
        for (next, buffer) in (1..).zip(buffers) {
            let more = usize::from(next) < buffers.len();
            let flags = buffer.flags | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            table.extend(MockDescriptor { flags, next, ..*buffer }.raw());
        }
        let len = u32::try_from(table.len()).expect("a table");
        let flags = VRING_DESC_F_INDIRECT as u16;
        MockDescriptor { addr: self.put(&table).0, len, flags, next: 0 }
    }

    /// Descriptors of `queue` that are free.
    pub fn room(&self, queue: u16) -> usize {
        self.queues[usize::from(queue)].free.len()
    }

    /// Makes a chain of `buffers` available on `queue`; returns its head.
    pub fn add(&mut self, queue: u16, buffers: &[MockDescriptor]) -> u16 {
        let ring = &mut self.queues[usize::from(queue)];
        assert!(ring.free.len() >= buffers.len(), "queue {queue} is full");
        let numbers: Vec<u16> = buffers.iter().filter_map(|_| ring.free.pop()).collect();
        for (nth, buffer) in buffers.iter().enumerate() {
            let next = numbers.get(nth + 1).copied();
            let flags = buffer.flags | next.map_or(0, |_| VRING_DESC_F_NEXT as u16);
            let entry = MockDescriptor { flags, next: next.unwrap_or(0), ..*buffer };
            self.write_descriptor(queue, numbers[nth], entry);
        }
        let head = numbers[0];
        self.queues[usize::from(queue)].chains[usize::from(head)] = numbers;
        self.make_available(queue, head);
        head
    }

    /// Writes entry `number` of the descriptor table of `queue`, valid or not.
    pub fn write_descriptor(&self, queue: u16, number: u16, entry: MockDescriptor) {
        let at = self.queues[usize::from(queue)].table + 16 * u64::from(number);
        self.mem.write_slice(&entry.raw(), GuestAddress(at)).expect("table in RAM");
    }

    /// Puts `head`, valid or not, into the available ring.
    pub fn make_available(&mut self, queue: u16, head: u16) {
        let ring = &mut self.queues[usize::from(queue)];
        let slot = u64::from(ring.next_available % ring.size);
        ring.next_available = ring.next_available.wrapping_add(1);
        let (index, available) = (ring.next_available, ring.available);
        self.mem.write_obj(head, GuestAddress(available + 4 + 2 * slot)).expect("ring in RAM");
        self.set_available_index(queue, index);
    }

    /// Writes the index of the available ring, valid or not.
    pub fn set_available_index(&self, queue: u16, index: u16) {
        let at = self.queues[usize::from(queue)].available + 2;
        self.mem.write_obj(index, GuestAddress(at)).expect("ring in RAM");
    }

    /// Notifies the device of `queue`.
    pub fn notify(&self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }

    /// Runs the event loop until there is nothing left to do; returns the rounds it took.
    pub fn run(&self) -> usize {
        let mut rounds = 0;
        while self.turn() {
            rounds += 1;
            assert!(rounds < 100_000, "the device keeps notifying itself");
        }
        rounds
    }

    /// One turn of the event loop: one round of each queue that was notified; false when none was.
    pub fn turn(&self) -> bool {
        let events = (0..).zip(self.transport.queue_events());
        let woken = events.filter(|(_, event)| event.read().is_ok()).map(|(queue, _)| queue);
        let woken: Vec<u16> = woken.collect();
        woken.iter().for_each(|queue| self.transport.process_queue(*queue));
        !woken.is_empty()
    }

    /// The next buffer that the device gave back: its head, and the bytes written.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let ring = &mut self.queues[usize::from(queue)];
        let index: u16 = self.mem.read_obj(GuestAddress(ring.used + 2)).expect("ring in RAM");
        if index == ring.next_used {
            return None;
        }
        let slot = u64::from(ring.next_used % ring.size);
        ring.next_used = ring.next_used.wrapping_add(1);
        // Requests an interrupt for the very next buffer, if negotiated.
        let used_event = GuestAddress(ring.available + 4 + 2 * u64::from(ring.size));
        self.mem.write_obj(ring.next_used, used_event).expect("ring in RAM");
        let at = GuestAddress(ring.used + 4 + 8 * slot);
        let [head, len]: [u32; 2] = self.mem.read_obj(at).expect("ring in RAM");
        let head = u16::try_from(head).expect("head of a chain");
        let chain = std::mem::take(&mut ring.chains[usize::from(head)]);
        ring.free.extend(chain);
        Some((head, len))
    }

    /// Adds a buffer, notifies, runs, and takes it back; returns the bytes written.
    pub fn send(&mut self, queue: u16, buffers: &[MockDescriptor]) -> u32 {
        let head = self.add(queue, buffers);
        self.notify(queue);
        self.run();
        let used = self.used(queue).expect("the device did not use the buffer");
        assert_eq!(used.0, head);
        used.1
    }
}
