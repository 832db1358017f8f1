// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The server: a Unix socket, a few connections at a time, and what every answer has in common.
//!
//! Limits are Firecracker's: [`MAX_CONNECTIONS`] at a time, and one more is told so and closed;
//! bodies of at most [`DEFAULT_MAX_PAYLOAD_BYTES`] unless `--http-api-max-payload-size` says
//! otherwise. A client that stalls holds its own connection and nobody else's.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SERVER, TRANSFER_ENCODING};
use http::{Method, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, oneshot, watch};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::api::body::RawBody;
use crate::api::channel::ActionSender;
use crate::api::error::ApiError;
use crate::api::stats::ApiStats;
use crate::host::sockets::{Listener, SocketError, SocketFile};

/// Connections served at a time.
pub const MAX_CONNECTIONS: usize = 10;

/// Largest body taken unless told otherwise, in bytes.
pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 51200;

/// What one connection too many is told.
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

/// A server on a thread of its own.
#[derive(Debug)]
pub struct Server {
    file: Arc<SocketFile>,
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

impl Server {
    /// How long those who are owed an answer may take to be given it.
    const LAST_WORDS: Duration = Duration::from_millis(200);

    /// Serves `socket` until [`stop`](Self::stop) or the end of the process. The service is made on
    /// the new thread, so that a machine that starts at once does not wait for it.
    pub fn spawn(
        socket: Listener,
        service: impl FnOnce() -> Service + Send + 'static,
    ) -> Result<Self, ServerError> {
        let Listener { socket: listener, file } = socket;
        let file = Arc::new(file);
        let (stop, stops) = oneshot::channel();
        let (done, stopped) = mpsc::channel();
        let run = move || {
            // Built here: the runtime belongs to this thread alone.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let served =
                runtime.and_then(|runtime| runtime.block_on(serve(listener, service(), stops)));
            if let Err(error) = served {
                tracing::error!(%error, "the API is gone");
            }
            // Nobody may wait.
            let _ = done.send(());
        };
        std::thread::Builder::new().name("api".into()).spawn(run).map_err(ServerError::Thread)?;
        Ok(Self { file, stop, stopped })
    }

    /// The socket's file, for a thread that ends the process without this one.
    pub fn file(&self) -> Arc<SocketFile> {
        Arc::clone(&self.file)
    }

    /// Takes the socket's file away, gives the answers that are owed, and ends.
    pub fn stop(self) {
        self.file.remove();
        // Both fail if the thread has ended by itself.
        let _ = self.stop.send(());
        let _ = self.stopped.recv_timeout(Self::LAST_WORDS);
    }
}

/// Accepts connections until told to stop; then waits for answers that are under way.
async fn serve(
    listener: UnixListener,
    service: Service,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stopping, stopped) = watch::channel(());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Dropped without a word: served until the process ends.
            Ok(()) = &mut stop => break,
        };
        let (mut stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: give those that are open a chance to close.
                warn!(%error, "accepting an API connection");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            service.stats.refused_connections.fetch_add(1, Ordering::Relaxed);
            // A new connection's buffer is empty: this does not wait.
            let _ = stream.write_all(TOO_MANY).await;
            continue;
        };
        let (service, stopped) = (service.clone(), stopped.clone());
        tokio::spawn(async move {
            converse(stream, service, stopped).await;
            drop(slot);
        });
    }
    drop(listener);
    drop(stopping);
    // All slots are free when all connections have ended.
    let _ = slots.acquire_many(MAX_CONNECTIONS as u32).await;
    Ok(())
}

/// Serves one connection. When `stopped` closes, the answer under way is its last.
async fn converse(
    stream: tokio::net::UnixStream,
    service: Service,
    mut stopped: watch::Receiver<()>,
) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .title_case_headers(true)
        .pipeline_flush(true)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let end = tokio::select! {
        end = &mut connection => end,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = end {
        debug!(%error, "an API connection ended");
    }
}

/// Turns one request into one answer.
#[derive(Debug, Clone)]
pub struct Service {
    router: Router,
    stats: Arc<ApiStats>,
    max_payload_bytes: usize,
}

impl Service {
    /// A service whose actions go through `machine`.
    pub fn new(machine: ActionSender, stats: Arc<ApiStats>, max_payload_bytes: usize) -> Self {
        Self { router: crate::api::router(machine), stats, max_payload_bytes }
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response
    where
        B: hyper::body::Body<Data: Send, Error: std::error::Error + Send + Sync + 'static>,
    {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let closes = request.headers().get(CONNECTION).is_some_and(|value| value == "close");
        let mut response = match self.read(request).await {
            Ok(request) => self.router.clone().oneshot(request).await.into_response(),
            Err(error) => error.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static("Firecracker API"));
        if !closes {
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        self.stats.count(&method, !response.status().is_success());
        debug!(%method, path, status = response.status().as_u16(), "API request");
        response
    }

    /// Reads the body, within the limit, into the request's extensions.
    async fn read<B>(&self, request: Request<B>) -> Result<Request<Body>, ApiError>
    where
        B: hyper::body::Body<Data: Send, Error: std::error::Error + Send + Sync + 'static>,
    {
        let (mut parts, body) = request.into_parts();
        if ![Method::GET, Method::PUT, Method::PATCH, Method::DELETE].contains(&parts.method) {
            return Err(ApiError::no_such_path(parts.method, &parts.uri));
        }
        let announced = parts
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok().and_then(|length| length.parse::<u64>().ok()));
        let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
        if parts.method == Method::GET && (announced.is_some_and(|length| length > 0) || chunked) {
            return Err(ApiError::UnwantedBody(parts.method));
        }
        let limit = self.max_payload_bytes;
        // Refused before the client is asked to go on sending (Expect: 100-continue).
        if announced.is_some_and(|length| usize::try_from(length).map_or(true, |n| n > limit)) {
            return Err(ApiError::TooLarge { limit });
        }
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::TooLarge { limit }
            } else {
                ApiError::BrokenBody(error.to_string())
            }
        })?;
        parts.extensions.insert(RawBody(body.to_bytes()));
        Ok(Request::from_parts(parts, Body::empty()))
    }
}

#[cfg(test)]
mod tests;
