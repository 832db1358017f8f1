// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's side of the protocol, for tests, benches and fuzzing: a driver that asks one thing
//! at a time and says the wrong one as readily as the right one.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{
    Create2d, CreateBlob, Flush, Header, MapBlob, MemEntry, MigrateEntry, MigratePage, SetScanout,
    SetScanoutBlob, Transfer, UpdateCursor, WireRect, blob_flag, blob_mem, code,
};
use super::{
    AnonymousMemory, CONTROL_QUEUE, CURSOR_QUEUE, Gpu, GpuParts, GpuSettings, HostRegion,
    HostWindow, Limits, PixelFormat,
};
use crate::display::{Frames, Headless, Rect, Size};
use crate::virtio::{
    Activation, Deadline, DeviceFailure, DeviceQueue, GuestMemory, Interrupt, Progress,
    SharedRegion, VirtioDevice,
};

/// Bytes of RAM of the driver's guest, from address 0.
pub const RAM: u64 = 64 << 20;
/// Below it are rings and commands; buffers of resources belong above.
pub const BUFFERS: u64 = 8 << 20;
/// Bytes of the host-visible window.
pub const WINDOW: u64 = 1 << 20;

const QUEUE_SIZE: u16 = 256;
const COMMANDS: u64 = 1 << 20;
const ANSWERS: u64 = COMMANDS - 8192;
/// Bytes of one readable descriptor; longer commands are split.
const PIECE: usize = 4096;

/// Counts the interrupts of each kind.
#[derive(Default)]
pub struct Interrupts {
    /// Used buffers.
    pub used: AtomicU32,
    /// Configuration changes.
    pub config: AtomicU32,
}

impl Interrupt for Interrupts {
    fn signal_used_queue(&self, _queue: u16) -> io::Result<()> {
        self.used.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn signal_config_change(&self) -> io::Result<()> {
        self.config.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn signal_needs_reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A window that is only a record of what was mapped; it panics where the contract is broken.
#[derive(Clone, Default)]
pub struct FakeWindow(Arc<Mutex<BTreeMap<u64, Arc<dyn HostRegion>>>>);

impl FakeWindow {
    /// What is mapped at `offset`.
    pub fn at(&self, offset: u64) -> Option<Arc<dyn HostRegion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&offset).cloned()
    }
}

impl HostWindow for FakeWindow {
    fn size(&self) -> u64 {
        WINDOW
    }

    fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> io::Result<()> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = |memory: &Arc<dyn HostRegion>| memory.bytes().len() as u64;
        let end = offset + len(&memory);
        assert!(offset.is_multiple_of(4096) && end <= WINDOW, "{offset:#x} leaves the window");
        for (start, other) in mapped.iter() {
            assert!(end <= *start || start + len(other) <= offset, "{offset:#x} is taken");
        }
        mapped.insert(offset, memory);
        Ok(())
    }

    fn unmap(&mut self, offset: u64) -> io::Result<()> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(mapped.remove(&offset).is_some(), "nothing is mapped at {offset:#x}");
        Ok(())
    }
}

/// What the device answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Code of the response; 0 when the device wrote none.
    pub code: u32,
    /// Flags of its header.
    pub flags: u32,
    /// Fence of its header.
    pub fence_id: u64,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A split ring with one buffer in flight, whose descriptors begin at 0.
struct Ring {
    index: u16,
    base: u64,
    submitted: u16,
}

impl Ring {
    fn new(index: u16) -> Self {
        Self { index, base: u64::from(index) << 16, submitted: 0 }
    }

    fn avail(&self) -> u64 {
        self.base + 0x4000
    }

    fn used(&self) -> u64 {
        self.base + 0x8000
    }

    fn device_side(&self, mem: &Arc<GuestMemory>, interrupt: Arc<Interrupts>) -> DeviceQueue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
        queue.set_size(QUEUE_SIZE);
        let low = |addr: u64| u32::try_from(addr).ok();
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.avail()), Some(0));
        queue.set_used_ring_address(low(self.used()), Some(0));
        queue.set_ready(true);
        let kick = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let running = Arc::new(AtomicBool::new(true));
        DeviceQueue::new(self.index, queue, Arc::clone(mem), interrupt, kick, running)
    }
}

/// A guest with a GPU.
pub struct Driver {
    /// The device.
    pub gpu: Gpu,
    /// Its RAM.
    pub mem: Arc<GuestMemory>,
    /// Frames of its display.
    pub frames: Frames,
    /// Its host-visible window.
    pub window: FakeWindow,
    /// Interrupts that it got.
    pub interrupts: Arc<Interrupts>,
    rings: [Ring; 2],
}

/// Entries that together are the pages in `pages`, each page alone.
pub fn single_pages(pages: impl IntoIterator<Item = u64>) -> Vec<MemEntry> {
    pages.into_iter().map(|page| entry(page * 4096, 4096)).collect()
}

/// One entry.
pub fn entry(addr: u64, length: u32) -> MemEntry {
    MemEntry { addr: addr.into(), length: length.into(), padding: 0.into() }
}

impl Driver {
    /// A device with two scanouts of 640 by 480, with the features that it offers.
    pub fn new(limits: Limits) -> Self {
        let (display, frames) = Headless::new();
        let window = FakeWindow::default();
        let settings = GpuSettings {
            scanouts: 2,
            mode: Size::new(640, 480),
            limits,
            window: Some(SharedRegion { addr: GuestAddress(1 << 40), len: WINDOW }),
            cma: Vec::new(),
        };
        let parts = GpuParts {
            host_memory: Box::new(AnonymousMemory),
            window: Some(Box::new(window.clone())),
            display: Box::new(display),
        };
        let ram = usize::try_from(RAM).expect("64 bits");
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), ram)]).expect("room for RAM");
        let mut driver = Self {
            gpu: Gpu::new(settings, parts).expect("a good mode"),
            mem: Arc::new(mem),
            frames,
            window,
            interrupts: Arc::default(),
            rings: [Ring::new(CONTROL_QUEUE), Ring::new(CURSOR_QUEUE)],
        };
        let features = driver.gpu.features();
        driver.start(features);
        driver
    }

    /// Resets the device and starts it again with `features`.
    pub fn start(&mut self, features: u64) {
        self.gpu.reset();
        self.rings = [Ring::new(CONTROL_QUEUE), Ring::new(CURSOR_QUEUE)];
        self.write(0, &vec![0; 1 << 17]);
        let queues = self.rings.iter();
        let queues = queues.map(|ring| ring.device_side(&self.mem, Arc::clone(&self.interrupts)));
        // Event indexes are left out: every buffer is then announced by an interrupt.
        let event_idx = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        let activation = Activation {
            mem: Arc::clone(&self.mem),
            features: features & !event_idx,
            interrupt: Arc::clone(&self.interrupts) as Arc<dyn Interrupt>,
            queues: queues.collect(),
        };
        self.gpu.activate(activation).expect("a device that starts");
    }

    /// Writes guest memory.
    pub fn write(&self, addr: u64, data: &[u8]) {
        self.mem.write_slice(data, GuestAddress(addr)).expect("RAM");
    }

    /// Reads guest memory.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mem.read_slice(&mut data, GuestAddress(addr)).expect("RAM");
        data
    }

    /// Puts `bytes` on a queue with room for `room` bytes of answer; the bytes of the answer.
    pub fn raw(&mut self, queue: u16, bytes: &[u8], room: u32) -> Result<Vec<u8>, DeviceFailure> {
        self.write(COMMANDS, bytes);
        let mut descriptors: Vec<(u64, u32, bool)> = bytes
            .chunks(PIECE)
            .zip((COMMANDS..).step_by(PIECE))
            .map(|(piece, addr)| (addr, u32::try_from(piece.len()).unwrap_or(0), false))
            .collect();
        if room > 0 {
            descriptors.push((ANSWERS, room, true));
        }
        let written = self.submit(queue, &descriptors)?;
        Ok(self.read(ANSWERS, usize::try_from(written.min(room)).unwrap_or(0)))
    }

    /// Makes one buffer of descriptors (address, length, writable) available and waits for it;
    /// how many bytes the device says it wrote.
    pub fn submit(
        &mut self,
        queue: u16,
        descriptors: &[(u64, u32, bool)],
    ) -> Result<u32, DeviceFailure> {
        let ring = &mut self.rings[usize::from(queue)];
        let (base, avail, used) = (ring.base, ring.avail(), ring.used());
        let slot = u64::from(ring.submitted % QUEUE_SIZE);
        ring.submitted = ring.submitted.wrapping_add(1);
        let submitted = ring.submitted;
        let count = descriptors.len().min(usize::from(QUEUE_SIZE));
        for (i, (addr, len, writable)) in descriptors.iter().take(count).enumerate() {
            let last = i + 1 == count;
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            let next = u16::try_from(i + 1).unwrap_or(0);
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&next.to_le_bytes());
            self.write(base + 16 * i as u64, &bytes);
        }
        self.write(avail + 4 + 2 * slot, &0u16.to_le_bytes());
        self.write(avail + 2, &submitted.to_le_bytes());
        while self.gpu.process(queue, &mut Deadline::new())? == Progress::More {}
        let done = self.read(used + 2, 2);
        assert_eq!(done, submitted.to_le_bytes(), "the buffer did not come back");
        let element = self.read(used + 4 + 8 * slot, 8);
        Ok(u32::from_le_bytes([element[4], element[5], element[6], element[7]]))
    }

    /// Sends a command and returns what was answered.
    pub fn send(&mut self, header: Header, body: &[&[u8]]) -> Answer {
        let mut bytes = header.as_bytes().to_vec();
        body.iter().for_each(|part| bytes.extend_from_slice(part));
        let cursor = matches!(header.kind.get(), code::UPDATE_CURSOR | code::MOVE_CURSOR);
        let queue = if cursor { CURSOR_QUEUE } else { CONTROL_QUEUE };
        let answer = self.raw(queue, &bytes, 4096).expect("a queue that works");
        match Header::read_from_prefix(&answer) {
            Ok((header, body)) => Answer {
                code: header.kind.get(),
                flags: header.flags.get(),
                fence_id: header.fence_id.get(),
                body: body.to_vec(),
            },
            Err(_) => Answer { code: 0, flags: 0, fence_id: 0, body: answer },
        }
    }

    /// Sends a command without a fence and returns the code of the answer.
    pub fn code(&mut self, kind: u32, body: &[&[u8]]) -> u32 {
        self.send(Header { kind: kind.into(), ..Header::default() }, body).code
    }

    /// RESOURCE_CREATE_2D.
    pub fn create_2d(&mut self, id: u32, format: PixelFormat, size: Size) -> u32 {
        let c = Create2d {
            resource_id: id.into(),
            format: (format as u32).into(),
            width: size.width.into(),
            height: size.height.into(),
        };
        self.code(code::RESOURCE_CREATE_2D, &[c.as_bytes()])
    }

    /// A command that is a resource number.
    pub fn on(&mut self, kind: u32, id: u32) -> u32 {
        self.code(kind, &[&id.to_le_bytes(), &[0; 4]])
    }

    /// RESOURCE_UNREF.
    pub fn unref(&mut self, id: u32) -> u32 {
        self.on(code::RESOURCE_UNREF, id)
    }

    /// RESOURCE_ATTACH_BACKING.
    pub fn attach(&mut self, id: u32, entries: &[MemEntry]) -> u32 {
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let head = [id.to_le_bytes(), count.to_le_bytes()].concat();
        self.code(code::RESOURCE_ATTACH_BACKING, &[&head, entries.as_bytes()])
    }

    /// TRANSFER_TO_HOST_2D.
    pub fn transfer(&mut self, id: u32, rect: Rect, offset: u64) -> u32 {
        let c = Transfer {
            rect: rect.into(),
            offset: offset.into(),
            resource_id: id.into(),
            ..Transfer::default()
        };
        self.code(code::TRANSFER_TO_HOST_2D, &[c.as_bytes()])
    }

    /// SET_SCANOUT.
    pub fn set_scanout(&mut self, scanout: u32, id: u32, rect: Rect) -> u32 {
        let c =
            SetScanout { rect: rect.into(), scanout_id: scanout.into(), resource_id: id.into() };
        self.code(code::SET_SCANOUT, &[c.as_bytes()])
    }

    /// SET_SCANOUT_BLOB of a framebuffer without padding that fills `size`.
    pub fn set_scanout_blob(&mut self, scanout: u32, id: u32, size: Size) -> u32 {
        let mut c = blob_surface(size);
        c.scanout_id = scanout.into();
        c.resource_id = id.into();
        self.code(code::SET_SCANOUT_BLOB, &[c.as_bytes()])
    }

    /// RESOURCE_FLUSH.
    pub fn flush(&mut self, id: u32, rect: Rect) -> u32 {
        let c = Flush { rect: rect.into(), resource_id: id.into(), ..Flush::default() };
        self.code(code::RESOURCE_FLUSH, &[c.as_bytes()])
    }

    /// RESOURCE_CREATE_BLOB in guest memory.
    pub fn create_guest_blob(&mut self, id: u32, size: u64, entries: &[MemEntry]) -> u32 {
        let c = CreateBlob {
            resource_id: id.into(),
            blob_mem: blob_mem::GUEST.into(),
            blob_flags: 0.into(),
            nr_entries: u32::try_from(entries.len()).unwrap_or(u32::MAX).into(),
            blob_id: 0.into(),
            size: size.into(),
        };
        self.code(code::RESOURCE_CREATE_BLOB, &[c.as_bytes(), entries.as_bytes()])
    }

    /// RESOURCE_CREATE_BLOB in host memory.
    pub fn create_host_blob(&mut self, id: u32, size: u64, mappable: bool) -> u32 {
        let c = CreateBlob {
            resource_id: id.into(),
            blob_mem: blob_mem::HOST3D.into(),
            blob_flags: (if mappable { blob_flag::MAPPABLE } else { 0 }).into(),
            size: size.into(),
            ..CreateBlob::default()
        };
        self.code(code::RESOURCE_CREATE_BLOB, &[c.as_bytes()])
    }

    /// RESOURCE_MAP_BLOB.
    pub fn map(&mut self, id: u32, offset: u64) -> u32 {
        let c = MapBlob { resource_id: id.into(), padding: 0.into(), offset: offset.into() };
        self.code(code::RESOURCE_MAP_BLOB, &[c.as_bytes()])
    }

    /// RESOURCE_MIGRATE_BACKING of (offset, new address) pairs.
    pub fn migrate(&mut self, id: u32, moves: &[(u64, u64)]) -> u32 {
        let entry = |(offset, addr): &(u64, u64)| MigrateEntry {
            offset: (*offset).into(),
            addr: (*addr).into(),
        };
        let entries: Vec<MigrateEntry> = moves.iter().map(entry).collect();
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let head = [id.to_le_bytes(), count.to_le_bytes()].concat();
        self.code(code::RESOURCE_MIGRATE_BACKING, &[&head, entries.as_slice().as_bytes()])
    }

    /// MIGRATE_PAGES of (resource, offset, new address): the code, and a byte for each page.
    pub fn migrate_pages(&mut self, moves: &[(u32, u64, u64)]) -> (u32, Vec<u8>) {
        let page = |(resource, offset, addr): &(u32, u64, u64)| MigratePage {
            resource: (*resource).into(),
            padding: 0.into(),
            entry: MigrateEntry { offset: (*offset).into(), addr: (*addr).into() },
        };
        let pages: Vec<MigratePage> = moves.iter().map(page).collect();
        let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let head = [count.to_le_bytes(), [0; 4]].concat();
        let header = Header { kind: code::MIGRATE_PAGES.into(), ..Header::default() };
        let answer = self.send(header, &[&head, pages.as_slice().as_bytes()]);
        (answer.code, answer.body)
    }

    /// UPDATE_CURSOR.
    pub fn update_cursor(&mut self, scanout: u32, id: u32, x: i32, y: i32) -> u32 {
        let c = UpdateCursor {
            scanout_id: scanout.into(),
            x: x.cast_unsigned().into(),
            y: y.cast_unsigned().into(),
            resource_id: id.into(),
            ..UpdateCursor::default()
        };
        self.code(code::UPDATE_CURSOR, &[c.as_bytes()])
    }
}

/// SET_SCANOUT_BLOB of a B8G8R8X8 framebuffer without padding, all of it shown.
pub fn blob_surface(size: Size) -> SetScanoutBlob {
    SetScanoutBlob {
        rect: WireRect::from(Rect::whole(size)),
        width: size.width.into(),
        height: size.height.into(),
        format: (PixelFormat::B8G8R8X8 as u32).into(),
        strides: [(size.width * 4).into(), 0.into(), 0.into(), 0.into()],
        ..SetScanoutBlob::default()
    }
}
