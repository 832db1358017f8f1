// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A live view of one scanout by VNC (RFB, RFC 6143), view-only: keyboard and pointer input is read
//! and dropped.
//!
//! Only on a Unix socket, whose file permissions control access; there is no other authentication.
//! Existing VNC crates listen on every interface of the host, and the protocol without encodings is
//! small: raw rectangles suit a local socket.
//!
//! Two threads per client: one reads requests, the other sends updates. Neither holds a lock during
//! I/O. A client costs a fixed amount of memory, charged to the display's budget, for any input and
//! any speed of reading; pixels go out in strips that are read from the frame one at a time. A
//! client that does not finish its handshake or a message, sends no request, or does not read its
//! update is dropped ([`Patience`]). Frames are requested only after the handshake.
//!
//! - `vnc_view.rs`: what clients are shown, and for how long they are waited for
//! - `client.rs`: one client's conversation
//! - `messages.rs`: the messages on the wire
//! - `pixel_format.rs`: pixels as a client wants them

mod client;
mod messages;
mod pixel_format;
mod vnc_view;

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use mm::budget::{BudgetError, Charge};
use mm::units::SaturatingInto;

pub use vnc_view::{Patience, Refresh, VncView};

/// Clients at a time, unless told otherwise; further ones are turned away, with a reason.
pub const MAX_CLIENTS: u64 = 4;
/// Threads that a client costs.
pub const THREADS_PER_CLIENT: u64 = 2;

/// Serves `view` to the clients of `listener`, from threads of its own.
///
/// # Errors
///
/// When the first thread cannot be made.
pub fn serve(listener: UnixListener, view: VncView) -> io::Result<()> {
    // Its thread only waits in accept(2).
    listener.set_nonblocking(false)?;
    let run = move || accept(&listener, &view);
    thread::Builder::new().name("vnc".into()).spawn(run).map(drop)
}

/// Serves one client on the calling thread and one other until it disconnects; for fuzzing.
///
/// # Errors
///
/// When the client breaks the protocol, is too slow, or memory or a thread is lacking for it.
#[cfg(any(test, feature = "test-utils"))]
pub fn serve_client(stream: &UnixStream, view: &VncView) -> io::Result<()> {
    client::talk(stream, view)
}

fn accept(listener: &UnixListener, view: &VncView) {
    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);
    let mut pause = SHORT;
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                pause = SHORT;
                match admit(view) {
                    Ok(charges) => start(stream, view.clone(), charges),
                    Err(reason) => refuse(&stream, &reason),
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

/// A place and threads for one client more.
fn admit(view: &VncView) -> Result<(Charge, Charge), BudgetError> {
    Ok((view.places.try_charge(1)?, view.threads.try_charge(THREADS_PER_CLIENT)?))
}

/// Tells a client why it is not served, without waiting for what it says: in version 3.3 the server
/// speaks on after its version, and ends with a reason (RFC 6143, 7.1.2).
fn refuse(stream: &UnixStream, reason: &BudgetError) {
    let reason = format!("too many viewers: {reason}");
    let length = reason.len().saturating_u32().to_be_bytes();
    let message = [b"RFB 003.003\n", &[0; 4][..], &length, reason.as_bytes()].concat();
    // A new connection's buffer is empty: this takes all of it.
    let _ = stream.set_nonblocking(true).and_then(|()| (&*stream).write_all(&message));
}

/// Serves a client from a thread of its own; its place is freed when the thread ends or cannot be
/// started.
fn start(stream: UnixStream, view: VncView, charges: (Charge, Charge)) {
    let run = move || {
        if let Err(error) = client::talk(&stream, &view) {
            tracing::debug!(%error, "VNC client disconnected");
        }
        // The client sees the end before another one is let in.
        drop(stream);
        drop(charges);
    };
    if let Err(error) = thread::Builder::new().name("vnc-client".into()).spawn(run) {
        tracing::warn!(%error, "cannot start a thread for a VNC client");
    }
}

#[cfg(test)]
mod tests;
