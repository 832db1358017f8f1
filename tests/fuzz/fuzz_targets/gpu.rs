// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams of GPU commands, well-formed and not, over guest memory that resources are backed by.
//!
//! Commands come one by one and many to a notification, in rounds that are cut or not, with extents of
//! 32 bits. The driver panics when a buffer does not come back, its window when a mapping leaves it or
//! overlaps another, and `validate` when a count is off. At the end everything is unreferenced, or the
//! device is reset in the middle of a command, and nothing may be left.

#![no_main]

use arbitrary::Arbitrary;
use devices::display::{Rect, ScanoutId, Size, Viewer};
use devices::gpu::mock::{BUFFERS, Driver, RAM, Setup, entry};
use devices::gpu::protocol::code;
use devices::gpu::{GpuLimits, PixelFormat, mode as mode_of};
use devices::virtio::Deadline;
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;

#[derive(Debug, Arbitrary)]
struct Area {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl From<&Area> for Rect {
    fn from(a: &Area) -> Self {
        // A quarter of the values are anything, most are near enough to fit.
        let near = |n: u32| if n >> 30 == 3 { n << 2 | n & 3 } else { n % 160 };
        Rect::new(near(a.x), near(a.y), near(a.width), near(a.height))
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Raw {
        cursor: bool,
        bytes: Vec<u8>,
        room: u16,
    },
    Create2d {
        id: u8,
        format: u8,
        width: u8,
        height: u8,
    },
    Create2dOf {
        id: u8,
        width: u32,
        height: u32,
    },
    /// Many commands to a notification.
    Burst {
        cursor: bool,
        commands: Vec<Vec<u8>>,
    },
    /// Commands of which only a few rounds are run, and a reset.
    CutOff {
        commands: Vec<Vec<u8>>,
        turns: u8,
    },
    Attach {
        id: u8,
        entries: Vec<(u16, u16)>,
    },
    GuestBlob {
        id: u8,
        size: u32,
        entries: Vec<(u16, u16)>,
    },
    HostBlob {
        id: u8,
        size: u32,
        mappable: bool,
    },
    Map {
        id: u8,
        offset: u32,
    },
    On {
        id: u8,
        command: u8,
    },
    Transfer {
        id: u8,
        rect: Area,
        offset: u32,
    },
    SetScanout {
        scanout: u8,
        id: u8,
        rect: Area,
    },
    SetScanoutBlob {
        scanout: u8,
        id: u8,
        width: u8,
        height: u8,
    },
    Flush {
        id: u8,
        rect: Area,
    },
    Migrate {
        id: u8,
        moves: Vec<(u8, u16)>,
    },
    Cursor {
        scanout: u8,
        id: u8,
        x: i32,
        y: i32,
    },
    Draw {
        at: u32,
        bytes: Vec<u8>,
    },
    Mode {
        scanout: u8,
        mode: Option<(u16, u16)>,
    },
    Look {
        scanout: u8,
    },
    Watch {
        scanout: u8,
        watch: bool,
    },
    Start {
        features: u64,
    },
}

/// Entries from page numbers and lengths, some of them not RAM and not whole pages.
fn entries(pairs: &[(u16, u16)]) -> Vec<devices::gpu::protocol::MemEntry> {
    let one = |(page, len): &(u16, u16)| {
        let length = if *len < 256 { 4096 * u32::from(*len) } else { u32::from(*len) };
        entry(BUFFERS + u64::from(*page) * PAGE, length)
    };
    pairs.iter().map(one).collect()
}

/// A migration could be aimed at the rings, after which nothing can be said of them.
fn moves(bytes: &[u8]) -> bool {
    matches!(bytes.get(..2), Some([0xf0 | 0xf1, 0x01]))
}

/// Puts commands on a queue without a notification, as many as there is room for.
fn post(d: &mut Driver, queue: u16, commands: &[Vec<u8>]) -> usize {
    let mut posted = 0;
    for bytes in commands.iter().filter(|bytes| !moves(bytes)).take(24) {
        d.post(queue, &bytes[..bytes.len().min(4096)], 64);
        posted += 1;
    }
    posted
}

fn run(d: &mut Driver, viewers: &mut [Option<Viewer>; 16], step: &Step) {
    match step {
        Step::Raw { cursor, bytes, room } => {
            if !moves(bytes) {
                let _ = d.raw(u16::from(*cursor), &bytes[..bytes.len().min(8192)], (*room).into());
            }
        }
        Step::Burst { cursor, commands } => {
            let queue = u16::from(*cursor);
            let mark = d.driver.alloc(0);
            let posted = post(d, queue, commands);
            d.driver.notify(queue);
            d.driver.run();
            let used = std::iter::from_fn(|| d.driver.used(queue)).count();
            assert_eq!(used, posted, "every buffer comes back");
            d.driver.release(mark);
        }
        Step::CutOff { commands, turns } => {
            post(d, 0, commands);
            d.driver.notify(0);
            for _ in 0..*turns % 8 {
                d.driver.turn();
                d.gpu().validate();
            }
            d.start(u64::MAX);
            assert_eq!(d.gpu().stats().host_bytes, 0);
        }
        Step::Create2dOf { id, width, height } => {
            d.create_2d_of((*id).into(), PixelFormat::B8G8R8X8, (*width, *height));
        }
        Step::Watch { scanout, watch } => {
            let id = ScanoutId::new(u32::from(*scanout % 2)).expect("a scanout");
            viewers[id.index()] = watch.then(|| d.frames.view(id));
        }
        Step::Create2d { id, format, width, height } => {
            let format = PixelFormat::ALL[usize::from(*format) % 8];
            d.create_2d_of((*id).into(), format, ((*width).into(), (*height).into()));
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
            if let Some(size) = Size::checked((*width).into(), (*height).into()) {
                d.set_scanout_blob((*scanout).into(), (*id).into(), size);
            }
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
            let mode = mode.map(|(width, height)| mode_of(width.into(), height.into()));
            if let Ok(mode) = mode.transpose() {
                let _ = d.gpu().set_mode((*scanout).into(), mode);
            }
        }
        Step::Look { scanout } => {
            if let Some(id) = ScanoutId::new((*scanout).into())
                && let Some(picture) = d.picture(id)
            {
                assert_eq!(Some(picture.size()), d.frames.size(id));
                assert!(picture.complete());
            }
        }
        Step::Start { features } => d.start(*features),
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (cut, steps) = input;
    let mut d = Driver::new(Setup {
        limits: GpuLimits { resources: 16, entries_per_resource: 128 },
        host_bytes: 1 << 20,
        deadline: if cut { || Deadline::of_work(1) } else { || Deadline::of_work(1 << 20) },
    });
    let mut viewers = [const { None }; 16];
    for step in steps.iter().take(64) {
        run(&mut d, &mut viewers, step);
        d.gpu().validate();
    }
    drop(viewers);
    for id in 0..=255 {
        d.unref(id);
    }
    d.reset();
    d.gpu().validate();
    assert_eq!(d.gpu().stats().host_bytes, 0);
    assert_eq!(d.gpu().stats().backing_bytes, 0);
    assert_eq!(d.budget.used(), 0);
});
