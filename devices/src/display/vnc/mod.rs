// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A live view of one scanout by VNC (RFB, RFC 6143), to look at and not to touch: what a client
//! types or points at is read and dropped.
//!
//! Only on a Unix socket, whose file permissions say who may look; there is no other
//! authentication. The crates that serve VNC listen on every interface of the host, and the
//! protocol, without its encodings, is small: raw rectangles are what a local socket wants.
//!
//! Two threads a client: one reads what it says, the other sends what it asked for. Neither holds a
//! lock while it talks. A client costs a fixed amount of memory, charged to the display's budget,
//! for any input and any speed of reading; pixels go out in strips that are read from the
//! frame one at a time. A client that does not finish its handshake or a message, asks for
//! nothing, or does not take what it asked for is dropped, and its place is free again
//! ([`Patience`]). The guest's picture is only asked for once the handshake is done.
//!
//! - `view.rs`: what clients are shown, and for how long they are waited for
//! - `client.rs`: one client's conversation
//! - `messages.rs`: the messages on the wire
//! - `pixel_format.rs`: pixels as a client wants them

mod client;
mod messages;
mod pixel_format;
mod view;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use mm::budget::Charge;

pub use view::{Patience, Refresh, View};

/// Clients at a time, unless told otherwise; further ones are turned away. Each costs two threads.
pub const MAX_CLIENTS: u64 = 4;

/// Serves `view` to the clients of `listener`, from threads of its own.
///
/// # Errors
///
/// When the first thread cannot be made.
pub fn serve(listener: UnixListener, view: View) -> io::Result<()> {
    // Its thread waits in accept(2), and has nothing else to do.
    listener.set_nonblocking(false)?;
    let run = move || accept(&listener, &view);
    thread::Builder::new().name("vnc".into()).spawn(run).map(drop)
}

/// Serves one client on the calling thread and one more, until it goes; for fuzzing.
///
/// # Errors
///
/// When the client breaks the protocol, is too slow, or memory or a thread is lacking for it.
#[cfg(any(test, feature = "test-utils"))]
pub fn serve_client(stream: &UnixStream, view: &View) -> io::Result<()> {
    client::talk(stream, view)
}

fn accept(listener: &UnixListener, view: &View) {
    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);
    let mut pause = SHORT;
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                pause = SHORT;
                if let Ok(place) = view.places.try_charge(1) {
                    start(stream, view.clone(), place);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "VNC handshake failed");
                // Most likely there are no descriptors left: wait longer each time.
                thread::sleep(pause);
                pause = (pause * 2).min(LONG);
            }
        }
    }
}

/// Serves a client from a thread of its own; its place is free again when that ends, or when there
/// is no thread for it.
fn start(stream: UnixStream, view: View, place: Charge) {
    let run = move || {
        if let Err(error) = client::talk(&stream, &view) {
            tracing::debug!(%error, "VNC client disconnected");
        }
        // The client sees the end before another one is let in.
        drop(stream);
        drop(place);
    };
    if let Err(error) = thread::Builder::new().name("vnc-client".into()).spawn(run) {
        tracing::warn!(%error, "cannot start a thread for a VNC client");
    }
}

#[cfg(test)]
mod tests;
