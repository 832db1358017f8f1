// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A live view of one scanout by VNC (RFB 3.8, RFC 6143), to look at and not to touch: what a
//! client types or points at is read and dropped.
//!
//! Only on a Unix socket, whose file permissions say who may look; there is no other
//! authentication. The crates that serve VNC listen on every interface of the host, and the
//! protocol, without its encodings, is small: raw rectangles are what a local socket wants.
//!
//! Two threads a client: one reads what it says, the other sends what it asked for. Neither holds a
//! lock while it talks, and a client that does not read is dropped. Nothing that a client sends
//! makes memory grow.

mod messages;
mod pixel_format;

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use self::messages::{ClientMessage, read_message, server_init, update_header};
use self::pixel_format::PixelFormat;
use super::headless::{Change, Viewer};
use super::{Frame, Frames, Rect, ScanoutId, Size};

/// Clients at a time; further ones are turned away.
const MAX_CLIENTS: usize = 4;
/// A client that takes nothing for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a thread that waits for a picture looks whether its client has gone.
const TICK: Duration = Duration::from_millis(200);
/// Size that a client is told before the guest shows anything.
const BLANK: Size = Size::new(640, 480);

/// Brings a scanout's picture to its frame once: for a first look at a guest that draws nothing.
pub type Refresh = Arc<dyn Fn(ScanoutId) + Send + Sync>;

/// What every client's threads need.
#[derive(Clone)]
struct Screen {
    frames: Frames,
    scanout: ScanoutId,
    refresh: Refresh,
}

/// Serves `scanout` to the clients of `listener`, from threads of its own.
///
/// # Errors
///
/// Where the host has no thread left.
pub fn serve(
    listener: UnixListener,
    frames: Frames,
    scanout: ScanoutId,
    refresh: Refresh,
) -> io::Result<()> {
    // The thread has nothing else to do than to wait.
    listener.set_nonblocking(false)?;
    let screen = Screen { frames, scanout, refresh };
    let run = move || accept(&listener, &screen);
    thread::Builder::new().name("vnc".into()).spawn(run).map(drop)
}

fn accept(listener: &UnixListener, screen: &Screen) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a viewer could not connect");
                // Most likely out of descriptors: give them time to come back.
                thread::sleep(TICK);
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (screen, clients) = (screen.clone(), Arc::clone(&clients));
        let client = move || {
            if let Err(error) = talk(&stream, &screen) {
                tracing::debug!(%error, "a viewer has gone");
            }
            clients.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = thread::Builder::new().name("vnc-client".into()).spawn(client) {
            tracing::warn!(%error, "no thread for a viewer");
        }
    }
}

/// What a client has said so far.
#[derive(Default)]
struct Wishes {
    format: PixelFormat,
    desktop_size: bool,
    /// It waits for an update; of everything, if the flag is set.
    waits: Option<bool>,
    gone: bool,
}

#[derive(Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one client until it goes.
fn talk(stream: &UnixStream, screen: &Screen) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let viewer = screen.frames.view(screen.scanout);
    (screen.refresh)(screen.scanout);
    let size = screen.frames.size(screen.scanout).unwrap_or(BLANK);
    messages::handshake(&mut &*stream)?;
    (&*stream).write_all(&server_init(size, &format!("Ballast scanout {}", screen.scanout)))?;

    let shared = Shared::default();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let sent = send_updates(stream, &shared, &viewer, size);
            // The reader may be waiting for a client that never speaks again.
            let _ = stream.shutdown(Shutdown::Both);
            sent
        });
        let read = read_wishes(stream, &shared);
        shared.wishes().gone = true;
        shared.changed.notify_all();
        let sent = sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        read.and(sent)
    })
}

fn read_wishes(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    loop {
        let message = read_message(&mut &*stream)?;
        let mut wishes = shared.wishes();
        match message {
            ClientMessage::Format(format) => wishes.format = format,
            ClientMessage::Encodings { desktop_size } => wishes.desktop_size = desktop_size,
            ClientMessage::Update { all } => {
                wishes.waits = Some(all || wishes.waits.unwrap_or(false));
                shared.changed.notify_all();
            }
            ClientMessage::Input => {}
        }
    }
}

/// Sends an update for each request, when there is something new.
fn send_updates(
    stream: &UnixStream,
    shared: &Shared,
    viewer: &Viewer,
    mut told: Size,
) -> io::Result<()> {
    loop {
        let wishes = shared.changed.wait_while(shared.wishes(), |w| w.waits.is_none() && !w.gone);
        let wishes = wishes.unwrap_or_else(PoisonError::into_inner);
        if wishes.gone {
            return Ok(());
        }
        let all = wishes.waits.is_some_and(|all| all);
        drop(wishes);
        if all {
            viewer.want_all();
        }
        let Some(change) = viewer.next(TICK) else {
            if all && !shared.wishes().gone {
                // There is no picture yet. A client that asked for everything gets black.
                let black = blank(told);
                answer(stream, shared, &mut told, &black)?;
            }
            continue;
        };
        answer(stream, shared, &mut told, &change)?;
    }
}

/// All black.
fn blank(size: Size) -> Change {
    Change { size: Some(size), resized: false, area: Rect::whole(size), pixels: Frame::new(size) }
}

/// Sends one update. A client that cannot be told of a new size sees what fits in the old one.
fn answer(
    stream: &UnixStream,
    shared: &Shared,
    told: &mut Size,
    change: &Change,
) -> io::Result<()> {
    let mut wishes = shared.wishes();
    let (format, desktop_size) = (wishes.format, wishes.desktop_size);
    let resize = change.size.filter(|size| desktop_size && size != told);
    let pixels = change.pixels.as_ref().and_then(|pixels| {
        let limit = Rect::whole(resize.unwrap_or(*told)).intersection(change.area)?;
        let (_, part) = pixels.crop(Rect::new(0, 0, limit.width, limit.height))?;
        Some((limit, part))
    });
    if resize.is_none() && pixels.is_none() {
        return Ok(());
    }
    wishes.waits = None;
    drop(wishes);
    *told = resize.unwrap_or(*told);
    let area = pixels.as_ref().map(|(area, _)| *area);
    let mut bytes = update_header(resize, area);
    if let Some((_, part)) = &pixels {
        format.encode(part.data(), &mut bytes);
    }
    (&*stream).write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::display::{Display, Headless, Pixels};

    struct Plain(Size, [u8; 4]);

    impl Pixels for Plain {
        fn size(&self) -> Size {
            self.0
        }

        fn copy(&self, rect: Rect, out: &mut [u8], stride: usize) {
            for line in out.chunks_mut(stride).take(rect.height as usize) {
                line[..4 * rect.width as usize].as_chunks_mut::<4>().0.fill(self.1);
            }
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

    #[test]
    fn a_viewer_follows_the_guest() {
        let dir = std::env::temp_dir().join(format!("ballast-vnc-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let id = ScanoutId::new(0).unwrap();
        let (mut display, frames) = Headless::new();
        let small = Size::new(20, 10);
        display.set_size(id, Some(small));
        serve(UnixListener::bind(&path).unwrap(), frames, id, Arc::new(|_| ())).unwrap();

        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(read(&mut client, 12), b"RFB 003.008\n");
        client.write_all(b"RFB 003.008\n").unwrap();
        assert_eq!(read(&mut client, 2), [1, 1]);
        client.write_all(&[1]).unwrap();
        assert_eq!(read(&mut client, 4), [0; 4]);
        client.write_all(&[1]).unwrap();
        let init = read(&mut client, 24);
        assert_eq!(init[..4], [0, 20, 0, 10]);
        read(&mut client, usize::from(init[23]));

        // Nothing is there yet: black. Then what the guest flushes, and only that.
        request(&mut client, 0);
        assert_eq!(update(&mut client), [(Rect::whole(small), 0, vec![0; 800])]);
        display.flush(id, Rect::whole(small), &Plain(small, [1, 2, 3, 4]));
        request(&mut client, 1);
        let all = update(&mut client);
        assert_eq!((all[0].0, &all[0].2[..4]), (Rect::whole(small), &[1, 2, 3, 4][..]));
        request(&mut client, 1);
        let part = Rect::new(3, 4, 2, 1);
        display.flush(id, part, &Plain(small, [9; 4]));
        assert_eq!(update(&mut client), [(part, 0, vec![9; 8])]);

        // A new mode, for a client that understands it, then one that leaves.
        client.write_all(&[2, 0, 0, 1]).unwrap();
        client.write_all(&(-223i32).to_be_bytes()).unwrap();
        let large = Size::new(30, 12);
        request(&mut client, 1);
        thread::sleep(Duration::from_millis(50));
        display.set_size(id, Some(large));
        assert_eq!(update(&mut client), [(Rect::whole(large), -223, vec![])]);
        drop(client);
        for _ in 0..100 {
            if !display.watched(id) {
                std::fs::remove_dir_all(&dir).unwrap();
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("the scanout is still watched for a viewer that has gone");
    }
}
