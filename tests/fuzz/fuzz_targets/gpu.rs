// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams of GPU commands, well-formed and not, over guest memory that resources are backed by.
//!
//! The driver panics when a buffer does not come back, its window when a mapping leaves it or
//! overlaps another, and `validate` when a count is off. At the end everything is unreferenced, and
//! nothing may be left.

#![no_main]

use arbitrary::Arbitrary;
use devices::display::{Rect, ScanoutId, Size};
use devices::gpu::mock::{BUFFERS, Setup, Driver, RAM, entry};
use devices::gpu::protocol::code;
use devices::gpu::{Limits, PixelFormat};
use devices::virtio::VirtioDevice;
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;

#[derive(Debug, Arbitrary)]
struct Area {
    x: u16,
    y: u16,
    width: u16,
    height: u16,
}

impl From<&Area> for Rect {
    fn from(a: &Area) -> Self {
        // A few of the values are far out, most are near enough to fit.
        let near = |n: u16| if n > 0xfff0 { u32::MAX - u32::from(n) } else { u32::from(n % 160) };
        Rect::new(near(a.x), near(a.y), near(a.width), near(a.height))
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Raw { cursor: bool, bytes: Vec<u8>, room: u16 },
    Create2d { id: u8, format: u8, width: u8, height: u8 },
    Attach { id: u8, entries: Vec<(u16, u16)> },
    GuestBlob { id: u8, size: u32, entries: Vec<(u16, u16)> },
    HostBlob { id: u8, size: u32, mappable: bool },
    Map { id: u8, offset: u32 },
    On { id: u8, command: u8 },
    Transfer { id: u8, rect: Area, offset: u32 },
    SetScanout { scanout: u8, id: u8, rect: Area },
    SetScanoutBlob { scanout: u8, id: u8, width: u8, height: u8 },
    Flush { id: u8, rect: Area },
    Migrate { id: u8, moves: Vec<(u8, u16)> },
    Cursor { scanout: u8, id: u8, x: i32, y: i32 },
    Draw { at: u32, bytes: Vec<u8> },
    Mode { scanout: u8, mode: Option<(u16, u16)> },
    Look { scanout: u8 },
    Start { features: u64 },
}

/// Entries from page numbers and lengths, some of them not RAM and not whole pages.
fn entries(pairs: &[(u16, u16)]) -> Vec<devices::gpu::protocol::MemEntry> {
    let one = |(page, len): &(u16, u16)| {
        let length = if *len < 256 { 4096 * u32::from(*len) } else { u32::from(*len) };
        entry(BUFFERS + u64::from(*page) * PAGE, length)
    };
    pairs.iter().map(one).collect()
}

fn run(d: &mut Driver, step: &Step) {
    match step {
        Step::Raw { cursor, bytes, room } => {
            // A migration could be aimed at the rings, after which nothing can be said of them.
            if bytes.get(..2) != Some(&[0xf0, 0x01]) {
                let _ = d.raw(u16::from(*cursor), &bytes[..bytes.len().min(8192)], (*room).into());
            }
        }
        Step::Create2d { id, format, width, height } => {
            let format = PixelFormat::ALL[usize::from(*format) % 8];
            d.create_2d((*id).into(), format, Size::new((*width).into(), (*height).into()));
        }
        Step::Attach { id, entries: pairs } => {
            d.attach((*id).into(), &entries(pairs));
        }
        Step::GuestBlob { id, size, entries: pairs } => {
            d.create_guest_blob((*id).into(), (*size).into(), &entries(pairs));
        }
        Step::HostBlob { id, size, mappable } => {
            d.create_host_blob((*id).into(), (*size).into(), *mappable);
        }
        Step::Map { id, offset } => {
            d.map((*id).into(), u64::from(*offset) << (*id % 13));
        }
        Step::On { id, command } => {
            let kinds = [
                code::RESOURCE_UNREF,
                code::RESOURCE_DETACH_BACKING,
                code::GET_EDID,
                code::RESOURCE_ASSIGN_UUID,
                code::RESOURCE_UNMAP_BLOB,
            ];
            d.on(kinds[usize::from(*command) % kinds.len()], (*id).into());
        }
        Step::Transfer { id, rect, offset } => {
            d.transfer((*id).into(), rect.into(), (*offset).into());
        }
        Step::SetScanout { scanout, id, rect } => {
            d.set_scanout((*scanout).into(), (*id).into(), rect.into());
        }
        Step::SetScanoutBlob { scanout, id, width, height } => {
            let size = Size::new((*width).into(), (*height).into());
            d.set_scanout_blob((*scanout).into(), (*id).into(), size);
        }
        Step::Flush { id, rect } => {
            d.flush((*id).into(), rect.into());
        }
        Step::Migrate { id, moves } => {
            let to = |page: u16| BUFFERS + u64::from(page) * PAGE;
            let moves: Vec<(u64, u64)> =
                moves.iter().map(|(from, page)| (u64::from(*from) * PAGE, to(*page))).collect();
            d.migrate((*id).into(), &moves);
        }
        Step::Cursor { scanout, id, x, y } => {
            d.update_cursor((*scanout).into(), (*id).into(), *x, *y);
        }
        Step::Draw { at, bytes } => {
            let at = BUFFERS + u64::from(*at) % (RAM - BUFFERS);
            let room = usize::try_from(RAM - at).unwrap_or(0);
            d.write(at, &bytes[..bytes.len().min(room)]);
        }
        Step::Mode { scanout, mode } => {
            let mode = mode.map(|(width, height)| Size::new(width.into(), height.into()));
            let _ = d.gpu.set_mode((*scanout).into(), mode);
        }
        Step::Look { scanout } => {
            if let Some(id) = ScanoutId::new((*scanout).into()) {
                if !d.frames.look(id) {
                    d.gpu.refresh(id);
                }
                if let Some(snapshot) = d.frames.snapshot(id) {
                    assert_eq!(Some(snapshot.frame.size()), d.frames.size(id));
                    let _ = snapshot.composed();
                }
            }
        }
        Step::Start { features } => d.start(features & d.gpu.features()),
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let limits = Limits { resources: 16, entries_per_resource: 128, host_bytes: 1 << 20 };
    let mut d = Driver::new(limits);
    for step in steps.iter().take(64) {
        run(&mut d, step);
        d.gpu.validate();
    }
    for id in 0..=255 {
        d.unref(id);
    }
    d.gpu.reset();
    d.gpu.validate();
    assert_eq!(d.gpu.stats().host_bytes, 0);
    assert_eq!(d.gpu.stats().backing_bytes, 0);
});
