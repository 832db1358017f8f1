// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The server: a Unix socket, a few connections at a time, and the common parts of all responses.
//!
//! Limits are Firecracker's: [`MAX_CONNECTIONS`] at a time, and a further one gets an error and is
//! closed; bodies of at most [`DEFAULT_MAX_PAYLOAD_BYTES`] unless `--http-api-max-payload-size`
//! says otherwise. A client that stalls holds only its own connection, and not for long.
//!
//! HTTP/1 itself is read here, with `httparse`, and not by a server library: Firecracker keeps the
//! connections of HTTP/1.0 clients without being asked, and clients rely on it; libraries close
//! them.
//!
//! - `connection.rs`: one connection, its deadlines and its end
//! - `places.rs`: how many there may be, and which idle one makes room
//! - `message.rs`: heads, bodies and answers as bytes
//! - `service.rs`: from a request to an answer
//! - `path.rs`: targets as Firecracker reads them

mod connection;
mod message;
mod path;
mod places;
mod service;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::event::EventfdFlags;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

pub use crate::api::stats::MAX_CONNECTIONS;
use crate::exit::{ExitReason, ExitSignal};
use crate::host::sockets::{Listener, SocketError, SocketFile};
use places::Places;
pub use service::ApiService;

/// Default limit on the size of a request body, in bytes.
pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 51200;

/// How long no connection is accepted after the host refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Response to a connection above the limit.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Server: Firecracker API\r\n\
    Connection: close\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 40\r\n\r\n\
    { \"error\": \"Too many open connections\" }";

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be made.
    #[error("API socket {0}")]
    Socket(#[from] SocketError),
    /// The thread or its runtime cannot be made.
    #[error("API thread: {0}")]
    Thread(io::Error),
}

/// A server on its own thread.
#[derive(Debug)]
pub struct Server {
    file: SocketFile,
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

impl Server {
    /// How long to wait for clients to receive pending responses.
    const LAST_WORDS: Duration = Duration::from_millis(200);

    /// Serves `socket` until [`stop`](Self::stop) or the end of the process. If the host
    /// has no descriptors left for it, the monitor ends through `exit`, since no client could reach it.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn spawn(
        socket: Listener,
        thread: &str,
        exit: Arc<ExitSignal>,
        service: ApiService,
    ) -> Result<Self, ServerError> {
        let Listener { socket: listener, file } = socket;
        let (stop, stops) = oneshot::channel();
        let (done, stopped) = mpsc::channel();
        let run = move || {
            // Built here: the runtime belongs to this thread alone.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                // A dozen descriptors at most: no need for the default's kilobytes.
                .max_io_events_per_tick(64)
                .build();
            let served =
                runtime.and_then(|runtime| runtime.block_on(serve(listener, service, stops)));
            if let Err(error) = served {
                exit.raise(ExitReason::HostError(format!("cannot serve the API: {error}")));
            }
            // No request may wait.
            let _ = done.send(());
        };
        std::thread::Builder::new().name(thread.into()).spawn(run).map_err(ServerError::Thread)?;
        Ok(Self { file, stop, stopped })
    }

    /// Removes the socket's file, sends pending responses, and stops.
    pub fn stop(self) {
        drop(self.file);
        // Both fail if the thread has already ended.
        let _ = self.stop.send(());
        let _ = self.stopped.recv_timeout(Self::LAST_WORDS);
    }
}

/// Accepts connections until stopped; then waits for pending responses.
async fn serve(
    listener: UnixListener,
    service: ApiService,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut spare = Some(spare_descriptor()?);
    let places = Places::new(service.stats.connections.0.clone());
    let mut connections = JoinSet::new();
    let (stopping, stopped) = watch::channel(());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender may also be dropped: then the server runs until the process ends.
            Ok(()) = &mut stop => break,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept an API connection");
                // Out of descriptors, for example: the one that was kept back is for the answer.
                drop(spare.take());
                if let Ok(Ok((stream, _))) = timeout(ACCEPT_PAUSE, listener.accept()).await {
                    turn_away(&stream, &service);
                }
                spare = spare_descriptor().ok();
                if spare.is_none() {
                    // An immediate retry would only spin.
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        match places.claim() {
            Some(place) => {
                connections.spawn(connection::serve(
                    stream,
                    place,
                    service.clone(),
                    stopped.clone(),
                ));
            }
            None => turn_away(&stream, &service),
        }
    }
    drop(listener);
    drop(stopping);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// A descriptor to give up when another is needed.
fn spare_descriptor() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// Answers a connection that cannot be served.
fn turn_away(stream: &UnixStream, service: &ApiService) {
    service.stats.refused_connections.fetch_add(1, Ordering::Relaxed);
    // A new connection's send buffer is empty: it accepts all of this.
    let _ = stream.try_write(TOO_MANY);
}

#[cfg(test)]
mod tests;
