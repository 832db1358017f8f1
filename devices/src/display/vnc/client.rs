// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client's conversation: a reader, a sender, and what they share.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::messages::{ClientMessage, handshake, read_message, server_init, update_header};
use super::pixel_format::ClientPixelFormat;
use super::vnc_view::{Patience, VncView};
use crate::display::headless::{ViewChange, Viewer};
use crate::display::{Area, Size};

/// Bytes of pixels that are read from a frame at a time.
const STRIP: u64 = 256 << 10;
/// Memory cost of a client: a strip in the frame's and in the client's format, stacks, buffers.
const CLIENT_BYTES: u64 = 1 << 20;
/// Interval at which a thread checks whether its client has disconnected or is idle.
const TICK: Duration = Duration::from_millis(200);
/// Size that a client gets before the guest shows anything.
const BLANK: Size = Size::new(640, 480);

/// The client's requests so far.
#[derive(Default)]
struct Wishes {
    format: ClientPixelFormat,
    desktop_size: bool,
    /// It waits for an update; of everything, if the flag is set.
    waits: Option<bool>,
    gone: bool,
}

#[derive(Default)]
struct ClientShared {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

impl ClientShared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.wishes().gone = true;
        self.changed.notify_all();
    }
}

/// A stream with a deadline for a sequence of calls.
struct TimedStream<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl<'a> TimedStream<'a> {
    fn new(stream: &'a UnixStream, patience: Duration) -> Self {
        Self { stream, end: Instant::now() + patience }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for TimedStream<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        (&*self.stream).read(out)
    }
}

impl Write for TimedStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        (&*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves one client until it disconnects.
pub(super) fn talk(stream: &UnixStream, view: &VncView) -> io::Result<()> {
    let VncView { frames, scanout, refresh, patience, .. } = view;
    let _memory = frames.budget().try_charge(CLIENT_BYTES).map_err(io::Error::other)?;
    let mut timed = TimedStream::new(stream, patience.handshake);
    handshake(&mut timed)?;
    // From now on the guest's flushes are copied.
    let viewer = frames.view(*scanout);
    refresh(*scanout);
    let size = frames.size(*scanout).unwrap_or(BLANK);
    timed.write_all(&server_init(size, &format!("Ballast scanout {scanout}")))?;

    let shared = ClientShared::default();
    thread::scope(|scope| {
        let send = || {
            let sender = UpdateSender { stream, shared: &shared, viewer: &viewer, patience };
            let sent = sender.run(size);
            // The reader may be waiting for a client that never speaks again.
            let _ = stream.shutdown(Shutdown::Both);
            sent
        };
        let sender = thread::Builder::new().name("vnc-sender".into()).spawn_scoped(scope, send)?;
        let read = read_wishes(stream, &shared, patience);
        shared.end();
        let sent = sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        read.and(sent)
    })
}

fn read_wishes(stream: &UnixStream, shared: &ClientShared, patience: &Patience) -> io::Result<()> {
    while let Some(kind) = first_byte(stream, shared, patience.idle)? {
        let message = read_message(kind, &mut TimedStream::new(stream, patience.message))?;
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
    Ok(())
}

/// The first byte of the next message; `None` when the client closed the connection.
///
/// A client that has requested an update may be silent until the guest draws. A client without a
/// request is idle.
fn first_byte(
    stream: &UnixStream,
    shared: &ClientShared,
    idle: Duration,
) -> io::Result<Option<u8>> {
    let mut silent_since = Instant::now();
    loop {
        stream.set_read_timeout(Some(TICK.min(idle)))?;
        let mut byte = [0];
        match (&*stream).read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if shared.wishes().waits.is_some() {
                    silent_since = Instant::now();
                } else if silent_since.elapsed() >= idle {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the client is idle"));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends updates.
struct UpdateSender<'a> {
    stream: &'a UnixStream,
    shared: &'a ClientShared,
    viewer: &'a Viewer,
    patience: &'a Patience,
}

impl UpdateSender<'_> {
    /// Sends an update for each request when the picture has changed. `told` is the desktop size
    /// that the client knows.
    fn run(&self, mut told: Size) -> io::Result<()> {
        loop {
            let idle = |wishes: &mut Wishes| wishes.waits.is_none() && !wishes.gone;
            let wishes = self.shared.changed.wait_while(self.shared.wishes(), idle);
            let wishes = wishes.unwrap_or_else(PoisonError::into_inner);
            if wishes.gone {
                return Ok(());
            }
            let all = wishes.waits.is_some_and(|all| all);
            drop(wishes);
            if all {
                self.viewer.want_all();
            }
            if let Some(change) = self.viewer.next(TICK) {
                self.answer(&mut told, &change)?;
            } else if all {
                // Incomplete picture: a client that requested everything gets the existing part.
                let damage = Some(Area::whole(told));
                self.answer(&mut told, &ViewChange { size: None, resized: false, damage })?;
            }
        }
    }

    /// Sends one update: first the number of pixels, then exactly that many, even if the picture
    /// changes in between. A client that does not support a new size sees what fits in the old one.
    fn answer(&self, told: &mut Size, change: &ViewChange) -> io::Result<()> {
        let mut wishes = self.shared.wishes();
        let (format, desktop_size) = (wishes.format, wishes.desktop_size);
        let resize = change.size.filter(|size| desktop_size && size != told);
        let shown = Area::whole(resize.unwrap_or(*told));
        let area = change.damage.and_then(|damage| damage.intersection(shown));
        if resize.is_none() && area.is_none() {
            return Ok(());
        }
        wishes.waits = None;
        drop(wishes);
        *told = shown.size;
        self.send(&update_header(resize, area))?;
        let (mut raw, mut encoded) = (Vec::new(), Vec::new());
        let mut left = area;
        while let Some(area) = left {
            let rows = (STRIP / area.size.row_bytes()) as u32;
            let (strip, rest) = area.split_rows(rows);
            self.viewer.read(strip, &mut raw);
            encoded.clear();
            format.encode(&raw, &mut encoded);
            self.send(&encoded)?;
            left = rest;
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        TimedStream::new(self.stream, self.patience.strip).write_all(bytes)
    }
}
