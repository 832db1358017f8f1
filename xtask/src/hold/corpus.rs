// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that repeatedly requests the longest operations of the monitor's devices, and floods its
//! serial port while it waits.
//!
//! The guest has no operating system: it is a list of writes to registers and rings, and of waits
//! for used rings, which a few instructions go through (`tiny_guest::script`). Everything that the
//! writes refer to lies in the image: queues, commands, lists of a quarter of a million entries.

use crate::tiny_guest::Script;

/// First virtio-mmio window of the machine, and the size of each.
const WINDOWS: u32 = 0xd000_0000;
const WINDOW: u32 = 0x1000;

/// Registers of virtio-mmio (virtio 1.3, 4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: u32 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u32 = 0x24;
    pub(super) const QUEUE_SEL: u32 = 0x30;
    pub(super) const QUEUE_NUM: u32 = 0x38;
    pub(super) const QUEUE_READY: u32 = 0x44;
    pub(super) const QUEUE_NOTIFY: u32 = 0x50;
    pub(super) const STATUS: u32 = 0x70;
    pub(super) const QUEUE_DESC: u32 = 0x80;
    pub(super) const QUEUE_DRIVER: u32 = 0x90;
    pub(super) const QUEUE_DEVICE: u32 = 0xa0;
}

/// VIRTIO_F_VERSION_1, of the second word of features.
const VERSION_1: u32 = 1;
const BALLOON_TELLS_HOST: u32 = 1 << 0;
const GPU_BLOBS: u32 = 1 << 3;
/// Ballast extension, in the second word: pages of resources move, so that the control queue runs
/// in the vCPU.
const GPU_MIGRATE: u32 = 1 << (56 - 32);

/// Depth of every queue here but the cursor's, which is at most so deep.
const DEPTH: u32 = 256;
const CURSOR_DEPTH: u32 = 64;
/// Most entries of a backing.
const ENTRIES: u32 = 1 << 18;
/// Where buffers of resources are.
const BUFFERS: u32 = 24 << 20;
/// Pages of guest memory that go through the balloon.
const BALLOON_PAGES: std::ops::Range<u32> = (40 << 8)..(60 << 8);

/// The devices that the corpus drives, by window: where `--balloon` and `--gpu` put them.
const BALLOON: u32 = 0;
const GPU: u32 = 1;

/// One queue of a device: rings in the image, and what was made available so far.
struct Queue {
    device: u32,
    index: u32,
    depth: u32,
    descriptors: u32,
    available: u32,
    used: u32,
    next_descriptor: u32,
    made_available: u32,
}

impl Queue {
    fn new(script: &mut Script, device: u32, index: u32, depth: u32) -> Self {
        let descriptors = script.reserve(16 * depth);
        let available = script.reserve(4 + 2 * depth);
        let used = script.reserve(4 + 8 * depth);
        Self {
            device,
            index,
            depth,
            descriptors,
            available,
            used,
            next_descriptor: 0,
            made_available: 0,
        }
    }

    fn register(&self, register: u32) -> u32 {
        WINDOWS + self.device * WINDOW + register
    }

    /// Registers this queue with the device, and empties its rings.
    fn set_up(&self, script: &mut Script) {
        script.write(self.available, 0);
        script.write(self.used, 0);
        script.write(self.register(register::QUEUE_SEL), self.index);
        script.write(self.register(register::QUEUE_NUM), self.depth);
        for (register, address) in [
            (register::QUEUE_DESC, self.descriptors),
            (register::QUEUE_DRIVER, self.available),
            (register::QUEUE_DEVICE, self.used),
        ] {
            script.write(self.register(register), address);
            script.write(self.register(register) + 4, 0);
        }
        script.write(self.register(register::QUEUE_READY), 1);
    }

    /// Puts a chain of `(address, length, writable)` into the rings; it is not available yet.
    fn add(&mut self, script: &mut Script, chain: &[(u32, u32, bool)]) {
        let first = self.next_descriptor;
        for (at, (address, length, writable)) in chain.iter().enumerate() {
            const NEXT: u16 = 1;
            const WRITE: u16 = 2;
            let last = at + 1 == chain.len();
            let flags = if last { 0 } else { NEXT } | if *writable { WRITE } else { 0 };
            let number = self.next_descriptor;
            self.next_descriptor += 1;
            assert!(self.next_descriptor <= self.depth, "the corpus fits into its queues");
            let next = if last { 0 } else { number + 1 };
            let words = [*address, 0, *length, u32::from(flags) | (next << 16)];
            script.place(self.descriptors + 16 * number, &words);
        }
        script.place_u16(self.available + 4 + 2 * self.made_available, first);
        self.made_available += 1;
    }

    /// Makes all that was added available with one notification, and waits for the answers.
    fn run(&self, script: &mut Script) {
        script.write(self.available, self.made_available << 16);
        script.write(self.register(register::QUEUE_NOTIFY), self.index);
        script.wait(self.used + 2, self.made_available);
    }
}

/// The guest's image. `in_vcpu` has the driver announce that pages of its buffers move, so that GPU
/// commands run in the vCPU that notifies and not in the event loop.
pub(super) fn image(in_vcpu: bool) -> Vec<u8> {
    let mut script = Script::new();
    balloon(&mut script, 0);
    balloon(&mut script, BALLOON_TELLS_HOST);
    gpu(&mut script, [GPU_BLOBS, if in_vcpu { VERSION_1 | GPU_MIGRATE } else { VERSION_1 }]);
    script.image()
}

fn reset(script: &mut Script, device: u32) {
    script.write(WINDOWS + device * WINDOW + register::STATUS, 0);
}

fn start(script: &mut Script, device: u32, features: [u32; 2], queues: &[&Queue]) {
    let base = WINDOWS + device * WINDOW;
    reset(script, device);
    script.write(base + register::STATUS, 1);
    script.write(base + register::STATUS, 1 | 2);
    for (word, bits) in (0..).zip(features) {
        script.write(base + register::DRIVER_FEATURES_SEL, word);
        script.write(base + register::DRIVER_FEATURES, bits);
    }
    script.write(base + register::STATUS, 1 | 2 | 8);
    queues.iter().for_each(|queue| queue.set_up(script));
    script.write(base + register::STATUS, 1 | 2 | 8 | 4);
}

/// Pages in and out, every other page first, so that no two are neighbours.
fn balloon(script: &mut Script, features: u32) {
    let mut queues = [0, 1].map(|index| Queue::new(script, BALLOON, index, DEPTH));
    let order = BALLOON_PAGES.step_by(2).chain(BALLOON_PAGES.skip(1).step_by(2));
    let pages: Vec<u32> = order.collect();
    for buffer in pages.chunks(1024) {
        let address = script.data(buffer);
        let chain = [(address, 4 * buffer.len() as u32, false)];
        queues.iter_mut().for_each(|queue| queue.add(script, &chain));
    }
    start(script, BALLOON, [features, VERSION_1], &queues.each_ref());
    queues.iter().for_each(|queue| queue.run(script));
    // A reset returns ballooned pages to the guest.
    reset(script, BALLOON);
}

/// Codes of virtio-gpu's commands (virtio 1.3, 5.7.6.7).
mod code {
    pub(super) const CREATE_2D: u32 = 0x101;
    pub(super) const UNREF: u32 = 0x102;
    pub(super) const SET_SCANOUT: u32 = 0x103;
    pub(super) const FLUSH: u32 = 0x104;
    pub(super) const TRANSFER: u32 = 0x105;
    pub(super) const ATTACH_BACKING: u32 = 0x106;
    pub(super) const DETACH_BACKING: u32 = 0x107;
    pub(super) const CREATE_BLOB: u32 = 0x10c;
    pub(super) const UPDATE_CURSOR: u32 = 0x300;
}

/// Extents of the tallest image.
const TALL: (u32, u32) = (64, 65_535);
/// Rows of it on a scanout, of which a picture is taken.
const SHOWN: u32 = 8192;
/// Extents of one with much host memory: 100 MiB.
const LARGE: (u32, u32) = (4096, 6400);
/// B8G8R8X8.
const FORMAT: u32 = 2;

struct Gpu {
    control: Queue,
    answer: u32,
}

impl Gpu {
    /// Adds a command whose entries, if any, lie in pieces of their own.
    fn command(&mut self, script: &mut Script, code: u32, body: &[u32], entries: &[(u32, u32)]) {
        let chain = command(script, self.answer, code, body, entries);
        self.control.add(script, &chain);
    }
}

fn command(
    script: &mut Script,
    answer: u32,
    code: u32,
    body: &[u32],
    entries: &[(u32, u32)],
) -> Vec<(u32, u32, bool)> {
    // Header: type, flags, fence (8 bytes), context, padding.
    let bytes = script.data(&[&[code, 0, 0, 0, 0, 0], body].concat());
    let mut chain = vec![(bytes, 24 + 4 * body.len() as u32, false)];
    chain.extend(entries.iter().map(|(address, length)| (*address, *length, false)));
    chain.push((answer, 64, true));
    chain
}

fn gpu(script: &mut Script, features: [u32; 2]) {
    let control = Queue::new(script, GPU, 0, DEPTH);
    let mut cursor = Queue::new(script, GPU, 1, CURSOR_DEPTH);
    let answer = script.reserve(64);
    let mut gpu = Gpu { control, answer };
    let mut send = |script: &mut Script, code, body: &[u32], entries: &[(u32, u32)]| {
        gpu.command(script, code, body, entries);
    };

    // Columns of the tallest image, from single pages in falling order: each row is a run.
    let pages = (TALL.0 * TALL.1).div_ceil(1024);
    let falling = (0..pages).rev().flat_map(|page| [BUFFERS + page * 4096, 0, 4096, 0]);
    let falling: Vec<u32> = falling.collect();
    let falling = (script.data(&falling), 16 * pages);
    send(script, code::CREATE_2D, &[1, FORMAT, TALL.0, TALL.1], &[]);
    send(script, code::ATTACH_BACKING, &[1, pages], &[falling]);
    send(script, code::SET_SCANOUT, &[0, 0, TALL.0, SHOWN, 0, 1], &[]);
    for column in 0..8 {
        send(script, code::TRANSFER, &[column, 0, 1, TALL.1, 0, 0, 1, 0], &[]);
    }
    send(script, code::TRANSFER, &[0, 0, TALL.0, TALL.1, 0, 0, 1, 0], &[]);
    send(script, code::FLUSH, &[0, 0, TALL.0, TALL.1, 1, 0], &[]);

    // Backings of single bytes: one that is built and freed, one that fails at its last entry.
    let bytes = (0..ENTRIES).flat_map(|n| [BUFFERS + n % 256 * 2, 0, 1, 0]);
    let bytes: Vec<u32> = bytes.collect();
    let bytes = script.data(&bytes);
    let bad = script.data(&[u32::MAX - 8192, u32::MAX, 4096, 0]);
    let all = [(bytes, 16 * ENTRIES)];
    let bad_last = [(bytes, 16 * (ENTRIES - 1)), (bad, 16)];
    let blob = |id| [id, 1, 0, ENTRIES, 0, 0, ENTRIES, 0];
    send(script, code::CREATE_BLOB, &blob(2), &all);
    send(script, code::CREATE_BLOB, &blob(3), &bad_last);
    send(script, code::CREATE_2D, &[4, FORMAT, 64, 64], &[]);
    send(script, code::ATTACH_BACKING, &[4, ENTRIES], &all);
    send(script, code::DETACH_BACKING, &[4, 0], &[]);

    // Host memory that is touched, and freed.
    send(script, code::CREATE_2D, &[5, FORMAT, LARGE.0, LARGE.1], &[]);
    let same = [BUFFERS, 0, 32 << 20, 0].repeat(4);
    let same = (script.data(&same), 64);
    send(script, code::ATTACH_BACKING, &[5, 4], &[same]);
    send(script, code::TRANSFER, &[0, 0, LARGE.0, LARGE.1, 0, 0, 5, 0], &[]);
    send(script, code::UNREF, &[5, 0], &[]);

    for _ in 0..20 {
        let update = [0, 0, 0, 0, 2, 0, 0, 0];
        let chain = command(script, answer, code::UPDATE_CURSOR, &update, &[]);
        cursor.add(script, &chain);
    }

    start(script, GPU, features, &[&gpu.control, &cursor]);
    gpu.control.run(script);
    cursor.run(script);
    // With resources of every kind.
    reset(script, GPU);
}
