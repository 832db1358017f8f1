// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's side of the protocol, for tests, benches and fuzzing: a driver that sends one
//! command after another, right and wrong ones alike, over the driver that all devices share.
//!
//! - `fake_window.rs`: a host-visible window that is only a record

#![allow(clippy::missing_panics_doc, reason = "a mock panics where a test has gone wrong")]

mod fake_window;

use std::sync::Arc;

use mm::budget::Budget;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use crate::display::{DisplayFrames, Frame, Headless, Rect, ScanoutId, Size};
use crate::gpu::protocol::{
    CommandHeader, Create2d, CreateBlob, Flush, MapBlob, MemEntry, MigrateEntry, MigratePage,
    SetScanout, SetScanoutBlob, TransferToHost, UpdateCursor, WireRect, blob_flag, blob_mem, code,
};
use crate::gpu::{
    AnonymousMemory, CONTROL_QUEUE, CURSOR_QUEUE, Gpu, GpuLimits, GpuParts, GpuSettings,
    PixelFormat,
};
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::transport::register;
use crate::virtio::{Deadline, DeviceLock, GuestMemoryMmap, Locked, SharedRegion, VirtioDevice};

pub use fake_window::{FakeWindow, WINDOW};

/// Bytes of RAM of the driver's guest, from address 0.
pub const RAM: u64 = 64 << 20;
/// Below it are rings and commands; buffers of resources belong above.
pub const BUFFERS: u64 = 8 << 20;
/// Mappings of the window at a time.
pub const MAPPINGS: u64 = 64;

/// Bytes of one readable descriptor; longer commands are split.
const PIECE: usize = 128 << 10;

/// What the device answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MockAnswer {
    /// Code of the response; 0 when the device wrote none.
    pub code: u32,
    /// Flags of its header.
    pub flags: u32,
    /// Fence of its header.
    pub fence_id: u64,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// Configuration of a device and its driver.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Limits for the guest.
    pub limits: GpuLimits,
    /// Bytes of host memory that the guest and its viewers may cause.
    pub host_bytes: u64,
    /// Makes the deadline of each round.
    pub deadline: fn() -> Deadline,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: GpuLimits::default(),
            host_bytes: crate::gpu::DEFAULT_HOST_BYTES,
            deadline: Deadline::new,
        }
    }
}

/// A guest with a GPU.
pub struct Driver {
    /// The driver's side of queues and registers.
    pub driver: MockDriver,
    /// Its RAM.
    pub mem: Arc<GuestMemoryMmap>,
    /// Frames of its display.
    pub frames: DisplayFrames,
    /// Its host-visible window.
    pub window: FakeWindow,
    /// Host memory that the guest and its viewers have caused.
    pub budget: Arc<Budget>,
    gpu: Arc<DeviceLock<Gpu>>,
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
    pub fn new(setup: Setup) -> Self {
        let budget = Budget::bytes("gpu", setup.host_bytes);
        let (display, frames) = Headless::new(Arc::clone(&budget));
        let window = FakeWindow::default();
        let settings = GpuSettings {
            scanouts: 2,
            mode: Size::new(640, 480),
            limits: setup.limits,
            window: Some(SharedRegion { addr: GuestAddress(1 << 40), len: WINDOW }),
            cma: Vec::new(),
        };
        let parts = GpuParts {
            host_memory: Box::new(AnonymousMemory),
            window: Some(Box::new(window.clone())),
            display: Box::new(display),
            budget: Arc::clone(&budget),
            mappings: Budget::count("gpu-mappings", MAPPINGS),
        };
        let ram = usize::try_from(RAM).expect("64 bits");
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram)]).expect("room for RAM");
        let mem = Arc::new(mem);
        let gpu = Arc::new(DeviceLock::new(Gpu::new(settings, parts).expect("a good mode")));
        let driver =
            MockDriver::with_deadline(Arc::clone(&mem), gpu.clone(), 4096..BUFFERS, setup.deadline);
        let mut driver = Self { driver, mem, frames, window, budget, gpu };
        driver.start(u64::MAX);
        driver
    }

    /// The device.
    pub fn gpu(&self) -> Locked<'_, Gpu> {
        self.gpu.lock()
    }

    /// The device, as other threads have it.
    pub fn shared(&self) -> &Arc<DeviceLock<Gpu>> {
        &self.gpu
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.driver.reset();
    }

    /// Resets the device and starts it again with those of `features` that it offers.
    pub fn start(&mut self, features: u64) {
        // Event indexes are left out: every buffer is then announced by an interrupt.
        let offered = self.gpu().features();
        self.driver.probe(features & offered & !(1 << VIRTIO_RING_F_EVENT_IDX), 2);
        self.driver.run();
    }

    /// How often the configuration has changed.
    pub fn config_generation(&self) -> u32 {
        self.driver.read(register::CONFIG_GENERATION)
    }

    /// The picture of a scanout, if any.
    pub fn picture(&self, scanout: ScanoutId) -> Option<Frame> {
        crate::gpu::capture(&self.gpu, scanout).ok().map(|snapshot| snapshot.composed())
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
    pub fn raw(&mut self, queue: u16, bytes: &[u8], room: u32) -> Vec<u8> {
        let mark = self.driver.alloc(0);
        let (buffers, answer) = self.buffers(bytes, room);
        let written = self.submit(queue, &buffers);
        let answer = self.read(answer.0, written.min(room) as usize);
        self.driver.release(mark);
        answer
    }

    /// Puts `bytes` on a queue with room for `room` bytes of answer, and does not notify. Where the
    /// answer will be.
    pub fn post(&mut self, queue: u16, bytes: &[u8], room: u32) -> GuestAddress {
        let (buffers, answer) = self.buffers(bytes, room);
        self.driver.add(queue, &buffers);
        answer
    }

    fn buffers(&mut self, bytes: &[u8], room: u32) -> (Vec<MockDescriptor>, GuestAddress) {
        let at = self.driver.put(bytes);
        let answer = self.driver.alloc(room.into());
        let mut buffers: Vec<MockDescriptor> = bytes
            .chunks(PIECE)
            .zip((at.0..).step_by(PIECE))
            .map(|(piece, addr)| MockDescriptor::readable(GuestAddress(addr), piece.len() as u32))
            .collect();
        if room > 0 {
            buffers.push(MockDescriptor::writable(answer, room));
        }
        if buffers.is_empty() {
            // A chain has a descriptor at least.
            buffers.push(MockDescriptor::readable(at, 0));
        }
        (buffers, answer)
    }

    /// Makes one buffer available and waits for it; how many bytes the device says it wrote.
    pub fn submit(&mut self, queue: u16, buffers: &[MockDescriptor]) -> u32 {
        self.driver.send(queue, buffers)
    }

    /// Sends a command and returns the response.
    pub fn send(&mut self, header: CommandHeader, body: &[&[u8]]) -> MockAnswer {
        let mut bytes = header.as_bytes().to_vec();
        body.iter().for_each(|part| bytes.extend_from_slice(part));
        let cursor = matches!(header.kind.get(), code::UPDATE_CURSOR | code::MOVE_CURSOR);
        let queue = if cursor { CURSOR_QUEUE } else { CONTROL_QUEUE };
        let answer = self.raw(queue, &bytes, 4096);
        match CommandHeader::read_from_prefix(&answer) {
            Ok((header, body)) => MockAnswer {
                code: header.kind.get(),
                flags: header.flags.get(),
                fence_id: header.fence_id.get(),
                body: body.to_vec(),
            },
            Err(_) => MockAnswer { code: 0, flags: 0, fence_id: 0, body: answer },
        }
    }

    /// Sends a command without a fence and returns the code of the answer.
    pub fn code(&mut self, kind: u32, body: &[&[u8]]) -> u32 {
        self.send(CommandHeader { kind: kind.into(), ..CommandHeader::default() }, body).code
    }

    /// RESOURCE_CREATE_2D.
    pub fn create_2d(&mut self, id: u32, format: PixelFormat, size: Size) -> u32 {
        self.create_2d_of(id, format, (size.width.into(), size.height.into()))
    }

    /// RESOURCE_CREATE_2D of any width and height.
    pub fn create_2d_of(&mut self, id: u32, format: PixelFormat, size: (u32, u32)) -> u32 {
        let c = Create2d {
            resource_id: id.into(),
            format: (format as u32).into(),
            width: size.0.into(),
            height: size.1.into(),
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
        let count = entries.len() as u32;
        let head = [id.to_le_bytes(), count.to_le_bytes()].concat();
        self.code(code::RESOURCE_ATTACH_BACKING, &[&head, entries.as_bytes()])
    }

    /// TRANSFER_TO_HOST_2D.
    pub fn transfer(&mut self, id: u32, rect: Rect, offset: u64) -> u32 {
        let c = TransferToHost {
            rect: rect.into(),
            offset: offset.into(),
            resource_id: id.into(),
            ..TransferToHost::default()
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
            nr_entries: (entries.len() as u32).into(),
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
        let count = entries.len() as u32;
        let head = [id.to_le_bytes(), count.to_le_bytes()].concat();
        self.code(code::RESOURCE_MIGRATE_BACKING, &[&head, entries.as_slice().as_bytes()])
    }

    /// MIGRATE_PAGES of (resource, offset, new address): returns the code, and one byte per page.
    pub fn migrate_pages(&mut self, moves: &[(u32, u64, u64)]) -> (u32, Vec<u8>) {
        let page = |(resource, offset, addr): &(u32, u64, u64)| MigratePage {
            resource: (*resource).into(),
            padding: 0.into(),
            entry: MigrateEntry { offset: (*offset).into(), addr: (*addr).into() },
        };
        let pages: Vec<MigratePage> = moves.iter().map(page).collect();
        let count = pages.len() as u32;
        let head = [count.to_le_bytes(), [0; 4]].concat();
        let header = CommandHeader { kind: code::MIGRATE_PAGES.into(), ..CommandHeader::default() };
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
        width: u32::from(size.width).into(),
        height: u32::from(size.height).into(),
        format: (PixelFormat::B8G8R8X8 as u32).into(),
        strides: [(u32::from(size.width) * 4).into(), 0.into(), 0.into(), 0.into()],
        ..SetScanoutBlob::default()
    }
}
