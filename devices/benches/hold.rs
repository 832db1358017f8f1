// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long the GPU's lock is held by the longest commands that a guest can send, many to a
//! notification.
//!
//! `cargo bench -p ballast-devices --features test-utils --bench hold`; prints lines `figure <name>
//! <value> <unit> goal <goal> met|short`, by the wall's clock and by CPU time. The wall's wants a
//! quiet machine: a thread that loses its CPU keeps holding the lock.

use devices::display::{Rect, ScanoutId, Size};
use devices::gpu::mock::{BUFFERS, Driver, Setup, entry, single_pages};
use devices::gpu::protocol::{
    CommandHeader, CreateBlob, Flush, MemEntry, MigrateEntry, TransferToHost, UpdateCursor,
    blob_mem, code,
};
use devices::gpu::{CONTROL_QUEUE, CURSOR_QUEUE, PixelFormat, ok};
use zerocopy::IntoBytes;

/// Longest hold that is good, in milliseconds.
const GOAL_MS: f64 = 5.0;
const ROUNDS: usize = 3;
const FIRST_PAGE: u64 = BUFFERS / 4096;
/// Most entries of a backing.
const MANY: u32 = 1 << 18;

/// A name, and what sends the commands; the driver that it leaves knows the longest hold.
type Case = (&'static str, fn() -> Driver);

fn main() {
    // `cargo test --benches` runs bench binaries with this flag: nothing to test here.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    devices::virtio::count_cpu_time();
    let cases: [Case; 8] = [
        ("transfer-columns", transfer_columns),
        ("transfer-whole", transfer_whole),
        ("flush-columns", flush_columns),
        ("create-blob-entries", create_blob_entries),
        ("create-blob-fails", create_blob_fails),
        ("migrate-pieces", migrate_pieces),
        ("free-host-memory", free_host_memory),
        ("cursor-pieces", cursor_pieces),
    ];
    for (name, case) in cases {
        let holds: Vec<(u64, u64)> = (0..ROUNDS)
            .map(|_| {
                let driver = case().driver;
                let longest = driver.transport().longest_hold();
                (longest.micros(), longest.cpu_micros())
            })
            .collect();
        // The worst of a few: the goal is a bound.
        let wall = holds.iter().map(|(wall, _)| *wall).max().unwrap_or(0);
        let cpu = holds.iter().map(|(_, cpu)| *cpu).max().unwrap_or(0);
        for (what, micros) in [("", wall), ("-cpu", cpu)] {
            let hold = micros as f64 / 1000.0;
            let met = if hold <= GOAL_MS { "met" } else { "short" };
            println!("figure hold.gpu.{name}{what} {hold:.3} ms goal <={GOAL_MS} {met}");
        }
    }
}

fn command(kind: u32, body: &[&[u8]]) -> Vec<u8> {
    let header = CommandHeader { kind: kind.into(), ..CommandHeader::default() };
    [&[header.as_bytes()], body].concat().concat()
}

/// Sends `commands` with one notification, and runs the loop until all are answered.
fn run(d: &mut Driver, queue: u16, commands: &[Vec<u8>]) {
    let answers: Vec<_> = commands.iter().map(|bytes| d.post(queue, bytes, 64)).collect();
    d.driver.notify(queue);
    d.driver.run();
    for at in answers {
        assert!(d.driver.used(queue).is_some());
        assert_eq!(d.read(at.0, 4), ok::NODATA.to_le_bytes());
    }
}

fn transfer(rect: Rect) -> Vec<u8> {
    let c =
        TransferToHost { rect: rect.into(), resource_id: 1.into(), ..TransferToHost::default() };
    command(code::TRANSFER_TO_HOST_2D, &[c.as_bytes()])
}

/// Image 1 of the most rows that there are.
fn tall_image() -> (Driver, Size) {
    let mut d = Driver::new(Setup::default());
    let size = Size::new(64, u16::MAX);
    assert_eq!(d.create_2d(1, PixelFormat::B8G8R8X8, size), ok::NODATA);
    let pages = size.bytes().div_ceil(4096);
    let entries = single_pages((FIRST_PAGE..FIRST_PAGE + pages).rev());
    assert_eq!(d.attach(1, &entries), ok::NODATA);
    (d, size)
}

fn transfer_columns() -> Driver {
    let (mut d, _) = tall_image();
    let column = |x| transfer(Rect::new(x, 0, 1, u16::MAX.into()));
    run(&mut d, CONTROL_QUEUE, &(0..20).map(column).collect::<Vec<_>>());
    d
}

fn transfer_whole() -> Driver {
    let (mut d, size) = tall_image();
    run(&mut d, CONTROL_QUEUE, &vec![transfer(Rect::whole(size)); 10]);
    d
}

/// Single bytes, no two of which are neighbours.
fn single_bytes() -> Vec<MemEntry> {
    (0..u64::from(MANY)).map(|n| entry(BUFFERS + n % 256 * 2, 1)).collect()
}

fn flush_columns() -> Driver {
    let mut d = Driver::new(Setup::default());
    let size = Size::new(1024, 8192);
    let entries = single_pages((FIRST_PAGE..FIRST_PAGE + 8192).rev());
    assert_eq!(d.create_guest_blob(1, size.bytes(), &entries), ok::NODATA);
    assert_eq!(d.set_scanout_blob(0, 1, size), ok::NODATA);
    let _viewer = ScanoutId::new(0).map(|id| d.frames.view(id));
    let flush = |x| {
        let rect = Rect::new(x, 0, 1, 8192);
        let c = Flush { rect: rect.into(), resource_id: 1.into(), ..Flush::default() };
        command(code::RESOURCE_FLUSH, &[c.as_bytes()])
    };
    run(&mut d, CONTROL_QUEUE, &(0..20).map(flush).collect::<Vec<_>>());
    d
}

fn create_blob_entries() -> Driver {
    let mut d = Driver::new(Setup::default());
    let entries = single_bytes();
    let c = CreateBlob {
        resource_id: 1.into(),
        blob_mem: blob_mem::GUEST.into(),
        nr_entries: MANY.into(),
        size: u64::from(MANY).into(),
        ..CreateBlob::default()
    };
    let create = command(code::RESOURCE_CREATE_BLOB, &[c.as_bytes(), entries.as_bytes()]);
    run(&mut d, CONTROL_QUEUE, &[create]);
    assert_eq!(d.unref(1), ok::NODATA);
    d
}

/// The last entry is bad: all that was built is freed.
fn create_blob_fails() -> Driver {
    let mut d = Driver::new(Setup::default());
    let mut entries = single_bytes();
    entries[MANY as usize - 1] = entry(u64::MAX - 4096, 1);
    assert_ne!(d.create_guest_blob(1, MANY.into(), &entries), ok::NODATA);
    d
}

fn migrate_pieces() -> Driver {
    let mut d = Driver::new(Setup::default());
    assert_eq!(d.create_guest_blob(1, MANY.into(), &single_bytes()), ok::NODATA);
    let moves: Vec<MigrateEntry> = (0..64u64)
        .map(|n| MigrateEntry {
            offset: (n * 4096).into(),
            addr: (BUFFERS + (1 << 20) + n * 4096).into(),
        })
        .collect();
    let head = [1u32.to_le_bytes(), 64u32.to_le_bytes()].concat();
    let migrate = command(code::RESOURCE_MIGRATE_BACKING, &[&head, moves.as_bytes()]);
    run(&mut d, CONTROL_QUEUE, &[migrate]);
    d
}

/// 200 MiB that are touched, and freed by UNREF and by a reset.
fn free_host_memory() -> Driver {
    let mut d = Driver::new(Setup::default());
    let size = Size::new(4096, 6400);
    for id in [1, 2] {
        assert_eq!(d.create_2d(id, PixelFormat::B8G8R8X8, size), ok::NODATA);
        // One page over and over: RAM is smaller than the image.
        let entries = vec![entry(BUFFERS, 32 << 20); 4];
        assert_eq!(d.attach(id, &entries), ok::NODATA);
        assert_eq!(d.transfer(id, Rect::whole(size), 0), ok::NODATA);
    }
    assert_eq!(d.unref(1), ok::NODATA);
    d.reset();
    d
}

fn cursor_pieces() -> Driver {
    let mut d = Driver::new(Setup::default());
    assert_eq!(d.create_guest_blob(1, MANY.into(), &single_bytes()), ok::NODATA);
    let c = UpdateCursor { resource_id: 1.into(), ..UpdateCursor::default() };
    let cursor = command(code::UPDATE_CURSOR, &[c.as_bytes()]);
    run(&mut d, CURSOR_QUEUE, &vec![cursor; 20]);
    d
}
