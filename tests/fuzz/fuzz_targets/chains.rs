// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chains of a hostile driver, for the devices that move data: any lengths and places, headers cut
//! over several descriptors, many chains to a notification.
//!
//! Invariants for each device: no panic; each chain is returned once, with at most as many bytes
//! written as it has room for; no round does more work than its deadline and one step allow. What
//! the device writes never lies in the rings, so that the driver's own record stays right.

use std::collections::HashMap;
use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::transport::mock::{MockDescriptor, MockDriver};
use devices::virtio::{Deadline, GuestMemoryMmap, SharedDevice};
use vm_memory::GuestAddress;

const RAM: u64 = 16 << 20;
/// Rings and headers.
const DRIVER: std::ops::Range<u64> = 0x1000..8 << 20;
/// Work of a round.
const WORK: u64 = 256 << 10;
/// The costliest step of any of these devices: 64 KiB of random numbers, 512 KiB of a disk.
const STEP: u64 = 1 << 20;

/// Guest memory of a device, and its deadline.
pub fn memory() -> Arc<GuestMemoryMmap> {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]);
    Arc::new(mem.expect("guest memory"))
}

/// Where a buffer is.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Place {
    Ram(u32),
    End(i8),
    Anywhere(u64),
}

impl Place {
    /// Never where the driver has its rings.
    fn address(self) -> u64 {
        let at = match self {
            Self::Ram(at) => DRIVER.end + u64::from(at) % (RAM - DRIVER.end),
            Self::End(off) => RAM.saturating_add_signed(off.into()),
            Self::Anywhere(at) => at,
        };
        if at < DRIVER.end { at + DRIVER.end } else { at }
    }
}

/// A length in bytes.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Length {
    Small(u8),
    Sectors(u8),
    Medium(u16),
    Any(u32),
}

impl Length {
    fn bytes(self) -> u32 {
        match self {
            Self::Small(len) => len.into(),
            Self::Sectors(count) => u32::from(count) * 512,
            Self::Medium(len) => len.into(),
            Self::Any(len) => len,
        }
    }
}

/// One buffer behind a header.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Buffer {
    place: Place,
    len: Length,
    writable: bool,
}

/// What comes behind the header, and how it is cut.
#[derive(Debug, Clone, Arbitrary)]
pub struct Shape {
    cuts: [u8; 3],
    buffers: Vec<Buffer>,
    /// Readable buffers first, as they have to be.
    sorted: bool,
    /// A byte for the device's answer, in memory of its own: the last one.
    status: bool,
    /// That byte comes before what else the device may write, as on a network card's control queue
    /// (virtio 1.3, 5.1.6.5).
    #[arbitrary(default)]
    status_first: bool,
}

impl Shape {
    /// The same without a status byte.
    #[allow(dead_code, reason = "not every target that includes this file uses it")]
    pub fn without_status(&self) -> Self {
        Self { status: false, ..self.clone() }
    }

    /// The same, with its status byte before what else the device may write.
    #[allow(dead_code, reason = "not every target that includes this file uses it")]
    pub fn with_status_first(&self) -> Self {
        Self { status_first: true, ..self.clone() }
    }
}

struct Owed {
    writable: u64,
    status: Option<GuestAddress>,
}

/// A driver and its outstanding chains.
pub struct Rig {
    pub driver: MockDriver,
    mem: Arc<GuestMemoryMmap>,
    queues: u16,
    features: u64,
    owed: Vec<HashMap<u16, Owed>>,
    /// The driver broke its own rings: returned chains are meaningless.
    lawless: bool,
}

impl Rig {
    /// A driver of `device` that uses `queues` queues.
    pub fn new(
        mem: &Arc<GuestMemoryMmap>,
        device: SharedDevice,
        queues: u16,
        features: u64,
    ) -> Self {
        let deadline = || Deadline::of_work(WORK);
        let driver = MockDriver::with_deadline(Arc::clone(mem), device, DRIVER, deadline);
        let mem = Arc::clone(mem);
        let mut rig = Self { driver, mem, queues, features, owed: Vec::new(), lawless: false };
        rig.probe();
        rig
    }

    /// Resets the device, and sets it up again.
    pub fn probe(&mut self) {
        self.driver.probe(self.features, self.queues);
        self.owed = (0..self.queues).map(|_| HashMap::new()).collect();
        self.lawless = false;
    }

    /// Adds a chain, if there is room for it; runs the device first if not.
    pub fn add(&mut self, queue: u16, header: &[u8], shape: &Shape) {
        let queue = queue % self.queues;
        let mut chain = Vec::new();
        let mut rest = header;
        for cut in shape.cuts {
            let (part, tail) = rest.split_at(usize::from(cut).min(rest.len()));
            rest = tail;
            if !part.is_empty() {
                chain.push(MockDescriptor::readable(self.driver.put(part), part.len() as u32));
            }
        }
        if !rest.is_empty() {
            chain.push(MockDescriptor::readable(self.driver.put(rest), rest.len() as u32));
        }
        let mut buffers: Vec<Buffer> = shape.buffers.iter().copied().take(40).collect();
        if shape.sorted {
            buffers.sort_by_key(|buffer| buffer.writable);
        }
        chain.extend(buffers.iter().map(|buffer| {
            let (at, len) = (GuestAddress(buffer.place.address()), buffer.len.bytes());
            if buffer.writable {
                MockDescriptor::writable(at, len)
            } else {
                MockDescriptor::readable(at, len)
            }
        }));
        let status = shape.status.then(|| self.driver.put(&[0xaa]));
        if let Some(at) = status {
            let place = match chain.iter().position(|it| it.flags & 2 != 0) {
                Some(first) if shape.status_first => first,
                _ => chain.len(),
            };
            chain.insert(place, MockDescriptor::writable(at, 1));
        }
        if chain.is_empty() {
            return;
        }
        if self.driver.room(queue) < chain.len() {
            self.run();
        }
        if self.driver.room(queue) < chain.len() {
            return;
        }
        let writable =
            chain.iter().filter(|it| it.flags & 2 != 0).map(|it| u64::from(it.len)).sum();
        let head = self.driver.add(queue, &chain);
        let before = self.owed[usize::from(queue)].insert(head, Owed { writable, status });
        assert!(self.lawless || before.is_none(), "a head was free that was not given back");
    }

    /// Writes a descriptor of any contents over one in use.
    pub fn corrupt(&mut self, queue: u16, number: u8, entry: [u8; 16]) {
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let addr = u64::from_le_bytes(std::array::from_fn(|at| entry[at]));
        // Not where the rings are, or the device's writes would be the driver's mistake.
        let addr = Place::Anywhere(addr).address();
        let len = u32::from_le_bytes(std::array::from_fn(|at| entry[8 + at]));
        let descriptor = MockDescriptor { addr, len, flags: word(12) & 3, next: word(14) % 80 };
        self.lawless = true;
        self.driver.write_descriptor(queue % self.queues, u16::from(number % 64), descriptor);
    }

    /// The device's rounds until there is nothing to do, and what it gave back.
    pub fn run(&mut self) {
        self.driver.run();
        self.drain();
    }

    /// Takes back what the device gave back.
    pub fn drain(&mut self) {
        let most = self.driver.transport().most_work();
        assert!(most <= WORK + STEP, "a round did {most} units of work");
        for queue in 0..self.queues {
            while let Some((head, len)) = self.driver.used(queue) {
                let owed = self.owed[usize::from(queue)].remove(&head);
                if self.lawless {
                    continue;
                }
                let owed = owed.expect("a chain that came back twice");
                assert!(u64::from(len) <= owed.writable, "{len} bytes of {}", owed.writable);
                if let Some(at) = owed.status {
                    let status: u8 = vm_memory::Bytes::read_obj(&*self.mem, at).expect("RAM");
                    assert!(status < 3 || len == 0, "status {status:#x}");
                }
            }
        }
    }

    /// Chains of `queue` that the device has, unless the driver broke its rings or the device wants
    /// a reset.
    #[allow(dead_code, reason = "not every target that includes this file uses it")]
    pub fn owed(&self, queue: u16) -> usize {
        let excused = self.lawless || self.driver.needs_reset();
        if excused { 0 } else { self.owed[usize::from(queue)].len() }
    }
}
