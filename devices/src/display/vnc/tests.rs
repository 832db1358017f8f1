// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients that behave, and clients that do not.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mm::budget::Budget;

use super::*;
use crate::display::testing::Plain;
use crate::display::{Area, Display, Headless, Rect, ScanoutId, Size};
use crate::virtio::Deadline;

const SMALL: Size = Size::new(20, 10);

/// A socket that is served, and its display.
struct Bed {
    display: Headless,
    id: ScanoutId,
    budget: Arc<Budget>,
    refreshes: Arc<AtomicUsize>,
    dir: PathBuf,
    path: PathBuf,
}

impl Bed {
    fn new(name: &str, patience: Patience, budget: u64) -> Self {
        let dir = std::env::temp_dir().join(format!("ballast-vnc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let id = ScanoutId::new(0).unwrap();
        let budget = Budget::bytes("test", budget);
        let (mut display, frames) = Headless::new(Arc::clone(&budget));
        display.set_size(id, Some(SMALL));
        let refreshes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&refreshes);
        let refresh: Refresh = Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let places = Budget::count("vnc-clients", MAX_CLIENTS);
        let threads = Budget::count("threads", 100);
        serve(listener, VncView { frames, scanout: id, refresh, patience, places, threads })
            .unwrap();
        let path = dir.join("s");
        Self { display, id, budget, refreshes, dir, path }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// Connects until a place is free, and shakes hands.
    fn client(&self) -> UnixStream {
        loop {
            let mut client = self.connect();
            let mut version = [0; 12];
            client.read_exact(&mut version).unwrap();
            if version == *b"RFB 003.003\n" {
                assert_eq!(read(&mut client, 4), [0; 4]);
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            assert_eq!(version, *b"RFB 003.008\n");
            client.write_all(b"RFB 003.008\n\x01\x01").unwrap();
            assert_eq!(read(&mut client, 6), [1, 1, 0, 0, 0, 0]);
            let init = read(&mut client, 24);
            assert_eq!(init[..4], [0, 20, 0, 10]);
            read(&mut client, usize::from(init[23]));
            return client;
        }
    }

    fn flush(&mut self, damage: Area, size: Size, colour: u8) {
        let pixels = Plain(size, colour);
        let left = self.display.flush(self.id, damage, &pixels, &mut Deadline::never());
        assert_eq!(left, None);
    }

    /// Waits until all clients' memory is given back.
    fn wait_until_empty(&self) {
        while self.budget.used() > 0 {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!self.display.watched(self.id));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// An update: its rectangles' headers, each with as many pixels of four bytes.
fn update(stream: &mut UnixStream) -> Vec<(Rect, i32, Vec<u8>)> {
    let head = read(stream, 4);
    assert_eq!(head[..2], [0, 0]);
    (0..u16::from_be_bytes([head[2], head[3]]))
        .map(|_| {
            let bytes = read(stream, 12);
            let word = |at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let rect = Rect::new(word(0), word(2), word(4), word(6));
            let encoding = i32::from_be_bytes(bytes[8..].try_into().unwrap());
            let pixels = if encoding == 0 { 4 * rect.width * rect.height } else { 0 };
            (rect, encoding, read(stream, pixels as usize))
        })
        .collect()
}

fn request(stream: &mut UnixStream, incremental: u8) {
    stream.write_all(&[3, incremental, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
}

fn short() -> Patience {
    let short = Duration::from_millis(30);
    Patience { handshake: short, message: short, idle: short, strip: short }
}

#[test]
fn the_listener_blocks_even_if_it_was_opened_otherwise() {
    let path = std::env::temp_dir().join(format!("ballast-vnc-wait-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (_display, frames) = Headless::new(Budget::bytes("test", 1 << 20));
    let same = listener.try_clone().unwrap();
    let view = VncView {
        frames,
        scanout: ScanoutId::new(0).unwrap(),
        refresh: Arc::new(|_| {}),
        patience: Patience::default(),
        places: Budget::count("vnc-clients", 1),
        threads: Budget::count("threads", 2),
    };
    serve(listener, view).unwrap();
    let flags = rustix::fs::fcntl_getfl(&same).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "the thread would poll: {flags:?}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_viewer_follows_the_guest() {
    let mut bed = Bed::new("follows", Patience::default(), 8 << 20);
    let mut client = bed.client();
    // Nothing is there yet: black. Then what the guest flushes, and only that.
    request(&mut client, 0);
    assert_eq!(update(&mut client), [(Rect::whole(SMALL), 0, vec![0; 800])]);
    bed.flush(Area::whole(SMALL), SMALL, 3);
    request(&mut client, 1);
    assert_eq!(update(&mut client), [(Rect::whole(SMALL), 0, vec![3; 800])]);
    request(&mut client, 1);
    let part = Area { x: 3, y: 4, size: Size::new(2, 1) };
    bed.flush(part, SMALL, 9);
    assert_eq!(update(&mut client), [(part.into(), 0, vec![9; 8])]);

    // A new mode, for a client that understands it, then one that leaves.
    client.write_all(&[2, 0, 0, 1]).unwrap();
    client.write_all(&(-223i32).to_be_bytes()).unwrap();
    let large = Size::new(30, 12);
    request(&mut client, 1);
    thread::sleep(Duration::from_millis(50));
    bed.display.set_size(bed.id, Some(large));
    assert_eq!(update(&mut client), [(Rect::whole(large), -223, vec![])]);
    drop(client);
    bed.wait_until_empty();
}

#[test]
fn silent_clients_give_their_places_back_and_cost_the_guest_nothing() {
    let patience = Patience { handshake: Duration::from_secs(1), ..Patience::default() };
    let bed = Bed::new("silent", patience, 8 << 20);
    let mut silent: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| bed.connect()).collect();
    // Some say nothing, some say a part.
    silent[1].write_all(b"RFB 003.").unwrap();
    silent[2].write_all(b"RFB 003.008\n").unwrap();
    for client in &mut silent {
        read(client, 12);
    }
    assert_eq!(bed.refreshes.load(Ordering::SeqCst), 0, "no picture before the handshake");
    let client = bed.client();
    assert_eq!(bed.refreshes.load(Ordering::SeqCst), 1);
    drop((client, silent));
    bed.wait_until_empty();
}

#[test]
fn clients_that_ask_for_nothing_or_half_a_message_are_dropped() {
    let patience = Patience { handshake: Patience::default().handshake, ..short() };
    let bed = Bed::new("idle", patience, 8 << 20);
    let idle = bed.client();
    let mut cut = bed.client();
    // A clipboard that never comes.
    cut.write_all(&[6, 0, 0, 0, 0, 0, 0, 9, b'a']).unwrap();
    for mut client in [idle, cut] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the server hung up");
    }
    bed.wait_until_empty();
}

#[test]
fn a_viewer_of_a_still_picture_is_not_idle() {
    let patience = Patience { handshake: Patience::default().handshake, ..short() };
    let mut bed = Bed::new("still", patience, 8 << 20);
    let mut client = bed.client();
    request(&mut client, 1);
    // Well beyond its patience, and beyond a tick.
    thread::sleep(Duration::from_millis(500));
    bed.flush(Area::whole(SMALL), SMALL, 4);
    assert_eq!(update(&mut client), [(Rect::whole(SMALL), 0, vec![4; 800])]);
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_costs_a_fixed_amount() {
    let patience = Patience { strip: Duration::from_millis(50), ..Patience::default() };
    let mut bed = Bed::new("slow", patience, 20 << 20);
    let large = Size::new(2000, 2000);
    let mut client = bed.client();
    bed.display.set_size(bed.id, Some(large));
    bed.flush(Area::whole(large), large, 1);
    client.write_all(&[2, 0, 0, 1]).unwrap();
    client.write_all(&(-223i32).to_be_bytes()).unwrap();
    request(&mut client, 0);
    // One frame and one client: the strip that is not taken is all that waits.
    bed.wait_until_empty();
    assert_eq!(bed.budget.peak(), large.bytes() + (1 << 20));
}

#[test]
fn a_client_too_many_is_told_why() {
    for (places, threads, says) in [(1, 100, "vnc-clients"), (4, 3, "threads")] {
        let mut bed = Bed::new(says, Patience::default(), 16 << 20);
        let listener = UnixListener::bind(bed.dir.join("t")).unwrap();
        let (places, threads) =
            (Budget::count("vnc-clients", places), Budget::count("threads", threads));
        let (mut display, frames) = Headless::new(Budget::bytes("test", 1 << 24));
        display.set_size(bed.id, Some(SMALL));
        let view = VncView {
            frames,
            scanout: bed.id,
            refresh: Arc::new(|_| {}),
            patience: Patience::default(),
            places: Arc::clone(&places),
            threads: Arc::clone(&threads),
        };
        serve(listener, view).unwrap();
        bed.path = bed.dir.join("t");
        let first = bed.client();
        let mut refusal = Vec::new();
        bed.connect().read_to_end(&mut refusal).unwrap();
        let text = refusal.strip_prefix(b"RFB 003.003\n\0\0\0\0").unwrap();
        let (length, reason) = text.split_at(4);
        assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, reason.len());
        let reason = String::from_utf8(reason.to_vec()).unwrap();
        assert!(
            reason.starts_with("too many viewers: budget ") && reason.contains(says),
            "{reason}"
        );
        drop(first);
        // Place and threads are free again.
        drop(bed.client());
        assert_eq!(threads.peak(), 2);
    }
}

#[test]
fn a_client_without_memory_for_it_is_turned_away() {
    let bed = Bed::new("memory", Patience::default(), 1 << 19);
    assert_eq!(bed.connect().read(&mut [0]).unwrap(), 0);
    assert_eq!(bed.budget.refusals(), 1);
}

#[test]
fn a_picture_that_changes_its_size_in_the_middle_keeps_the_stream_in_step() {
    let mut bed = Bed::new("resize", Patience::default(), 64 << 20);
    let large = Size::new(1024, 1024);
    let mut client = bed.client();
    client.write_all(&[2, 0, 0, 1]).unwrap();
    client.write_all(&(-223i32).to_be_bytes()).unwrap();
    for turn in 1..20u8 {
        let size = if turn % 2 == 0 { SMALL } else { large };
        bed.display.set_size(bed.id, Some(size));
        bed.flush(Area::whole(size), size, turn);
        request(&mut client, 0);
        // Before the client has read it all, there is another picture.
        let other = if turn % 2 == 0 { large } else { SMALL };
        bed.display.set_size(bed.id, Some(other));
        bed.flush(Area::whole(other), other, turn + 100);
        for (rect, encoding, _) in update(&mut client) {
            assert!([0, -223].contains(&encoding), "{rect:?}");
            assert!(rect.within(large).is_some(), "{rect:?}");
        }
    }
}
