// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection, from its first byte to its end: requests one after the other, each with deadlines
//! for its head, its body and the reading of its answer.
//!
//! A client that closes its sending side still gets the responses to all its requests. A
//! disconnected client frees its place, even while the machine performs its request, which is
//! completed nevertheless.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use mm::units::usize_from;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::message::{self, CONTINUE, Chunks, Framing, Head, MessageError};
use super::places::Place;
use super::service::ApiService;
use crate::api::error::ApiError;

/// From a head's first byte to its last, and from there to the body's.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// The client may read nothing of an answer for this long.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long, and how much, is read and discarded after a rejected body, so that the response is not
/// lost when the connection closes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// After this time without a reply, the server watches whether the client is still connected.
const PROMPT: Duration = Duration::from_millis(500);

/// Serves a connection until either side closes it. When `stopped` changes, the current response is
/// the last.
pub(super) async fn serve(
    stream: UnixStream,
    place: Place,
    service: ApiService,
    stopped: watch::Receiver<()>,
) {
    let connection =
        Connection { stream, place, service, stopped, input: BytesMut::new(), at_end: false };
    if let Err(error) = connection.run().await {
        tracing::debug!(%error, "an API connection ended");
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the client stopped in the middle of a request or response")]
    Stalled,
    #[error("the client closed the connection")]
    Gone,
}

struct Connection {
    stream: UnixStream,
    place: Place,
    service: ApiService,
    stopped: watch::Receiver<()>,
    /// Read, and not yet part of a request.
    input: BytesMut,
    /// The client sends nothing more.
    at_end: bool,
}

impl Connection {
    async fn run(mut self) -> Result<(), Broken> {
        loop {
            let head = match self.head().await? {
                Some(Ok(head)) => head,
                Some(Err(error)) => {
                    // After invalid HTTP, nothing that follows can be parsed.
                    let refusal = ApiError::NotHttp(error.to_string());
                    let answer = self.service.refuse(&Method::default(), "", refusal);
                    self.answer(answer, true).await?;
                    return self.linger().await;
                }
                None => return Ok(()),
            };
            let closes = head.closes;
            match self.body(&head).await? {
                Ok(body) => {
                    let answer = self.ask(head, body).await?;
                    let closes = closes || self.stopping();
                    self.answer(answer, closes).await?;
                    if closes {
                        return Ok(());
                    }
                }
                Err(error) => {
                    let answer = self.service.refuse(&head.method, head.uri.path(), error);
                    // The rest of the body would be mistaken for a request.
                    self.answer(answer, true).await?;
                    return self.linger().await;
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stopped.has_changed().unwrap_or(true)
    }

    /// The next head; `None` at the end of the connection between two requests.
    async fn head(&mut self) -> Result<Option<Result<Head, MessageError>>, Broken> {
        // Between requests there is no deadline, but another client may take the place.
        self.place.set_idle(self.input.is_empty());
        while self.input.is_empty() {
            if self.at_end || self.stopping() {
                return Ok(None);
            }
            let read = async {
                tokio::select! {
                    read = self.stream.read_buf(&mut self.input) => Some(read),
                    _ = self.stopped.changed() => None,
                    () = self.place.evicted() => None,
                }
            };
            match read.await {
                Some(read) => self.at_end = read? == 0,
                None => return Ok(None),
            }
        }
        self.place.set_idle(false);
        let deadline = Instant::now() + REQUEST_LIMIT;
        loop {
            match Head::take(&mut self.input) {
                Ok(Some(head)) => return Ok(Some(Ok(head))),
                Ok(None) if self.at_end => return Err(Broken::Gone),
                Ok(None) => self.read_by(deadline).await?,
                Err(error) => return Ok(Some(Err(error))),
            }
        }
    }

    /// The whole body, or why it cannot be accepted.
    async fn body(&mut self, head: &Head) -> Result<Result<Bytes, ApiError>, Broken> {
        let limit = self.service.max_payload_bytes;
        let deadline = Instant::now() + REQUEST_LIMIT;
        match head.framing {
            Framing::Length(0) => Ok(Ok(Bytes::new())),
            _ if head.method == Method::GET => Ok(Err(ApiError::UnwantedBody(head.method.clone()))),
            Framing::Length(announced) => {
                // Refused before the client is asked to go on sending.
                let length = usize_from(announced);
                if length > limit {
                    return Ok(Err(ApiError::TooLarge { limit }));
                }
                self.encourage(head).await?;
                while self.input.len() < length {
                    if self.at_end {
                        return Err(Broken::Gone);
                    }
                    self.read_by(deadline).await?;
                }
                Ok(Ok(self.input.split_to(length).freeze()))
            }
            Framing::Chunked => {
                self.encourage(head).await?;
                let mut chunks = Chunks::new();
                loop {
                    match chunks.take(&mut self.input, limit) {
                        Err(error) => return Ok(Err(ApiError::NotHttp(error.to_string()))),
                        Ok(_) if chunks.len() > limit => {
                            return Ok(Err(ApiError::TooLarge { limit }));
                        }
                        Ok(true) => return Ok(Ok(chunks.into_body())),
                        Ok(false) if self.at_end => return Err(Broken::Gone),
                        Ok(false) => self.read_by(deadline).await?,
                    }
                }
            }
        }
    }

    /// Sends the interim answer to a client that waits for it.
    async fn encourage(&mut self, head: &Head) -> Result<(), Broken> {
        if head.expects_continue && self.input.is_empty() {
            self.write(CONTINUE).await?;
        }
        Ok(())
    }

    /// Calls the routes. Returns early if the client disconnects.
    async fn ask(&self, head: Head, body: Bytes) -> Result<axum::response::Response, Broken> {
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.headers_mut() = head.headers;
        let answer = self.service.answer(request);
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return Ok(answer),
            () = sleep(PROMPT) => {}
        }
        // A separate descriptor: readiness is cleared below, which would stall the stream.
        let Ok(descriptor) = self.stream.as_fd().try_clone_to_owned() else {
            // None is left: a client that goes away keeps its place until the answer is there.
            return Ok(answer.await);
        };
        let watched = UnixStream::from_std(descriptor.into())?;
        tokio::select! {
            biased;
            answer = &mut answer => Ok(answer),
            () = hung_up(&watched) => Err(Broken::Gone),
        }
    }

    async fn answer(
        &mut self,
        answer: axum::response::Response,
        closes: bool,
    ) -> Result<(), Broken> {
        let (parts, body) = message::whole(answer).await;
        let bytes = message::answer(&parts, &body, closes);
        self.write(&bytes).await
    }

    /// Writes all of it, as long as the client keeps reading.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let written = timeout(ANSWER_LIMIT, self.stream.write(bytes)).await;
            let written = written.map_err(|_| Broken::Stalled)??;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    async fn read_by(&mut self, deadline: Instant) -> Result<(), Broken> {
        let read = timeout_at(deadline, self.stream.read_buf(&mut self.input)).await;
        self.at_end = read.map_err(|_| Broken::Stalled)?? == 0;
        Ok(())
    }

    /// Closes the sending side and reads pending input: closing a socket with unread bytes may
    /// discard the response.
    async fn linger(mut self) -> Result<(), Broken> {
        self.stream.shutdown().await?;
        let drain = async {
            let mut left = LINGER_BYTES;
            let mut buffer = vec![0; 16 * 1024];
            while left > 0 {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => left = left.saturating_sub(count),
                }
            }
        };
        // At the limit the client has had its chance.
        let _ = timeout(LINGER, drain).await;
        Ok(())
    }
}

/// Returns when the client has closed both directions.
async fn hung_up(watched: &UnixStream) {
    while let Ok(ready) = watched.ready(Interest::WRITABLE).await {
        if ready.is_write_closed() {
            return;
        }
        // Clears the readiness until the kernel reports a change.
        let _ = watched.try_io(Interest::WRITABLE, || {
            Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Places;
    use super::*;
    use crate::api::channel::channel;
    use crate::api::{ActionReceiver, Reply};

    /// A connection with the test as its only client.
    struct Setup {
        client: UnixStream,
        machine: ActionReceiver,
        places: Places,
        served: tokio::task::JoinHandle<()>,
        _stopping: watch::Sender<()>,
    }

    fn connect() -> Setup {
        let (sender, machine) = channel().unwrap();
        let (client, stream) = UnixStream::pair().unwrap();
        let (stopping, stopped) = watch::channel(());
        let service = ApiService::new(sender, Default::default(), 1000);
        let places = Places::new(service.stats.connections.0.clone());
        let place = places.claim().unwrap();
        let served = tokio::spawn(serve(stream, place, service, stopped));
        Setup { client, machine, places, served, _stopping: stopping }
    }

    /// Time is paused and advances only while waiting, so nothing here depends on the clock.
    #[tokio::test(start_paused = true)]
    async fn half_sent_requests_are_given_up() {
        for half in [
            "G",
            "GET / HTTP/1.1\r\nHost:",
            "PUT /vm HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
            "PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        ] {
            let mut setup = connect();
            setup.client.write_all(half.as_bytes()).await.unwrap();
            setup.served.await.unwrap();
            assert_eq!(setup.client.read(&mut [0; 9]).await.unwrap(), 0, "{half}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_has_no_deadline() {
        let mut setup = connect();
        sleep(Duration::from_secs(24 * 3600)).await;
        setup.client.write_all(b"GET /version HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(setup.client.read(&mut [0; 9]).await.unwrap() > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_no_answers_is_given_up() {
        let mut setup = connect();
        let requests = b"GET /version HTTP/1.1\r\n\r\n".repeat(1000);
        let send = async {
            // The client's sending blocks too when the server stops reading.
            while setup.client.write_all(&requests).await.is_ok() {}
        };
        tokio::select! {
            () = send => {}
            served = &mut setup.served => served.unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_disappears_gives_its_place_back_while_the_machine_works() {
        let mut setup = connect();
        let patch = b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
        setup.client.write_all(patch).await.unwrap();
        let request = loop {
            match setup.machine.take() {
                Some(request) => break request,
                None => tokio::task::yield_now().await,
            }
        };
        drop(setup.client);
        setup.served.await.unwrap();
        drop(setup.places);
        // The machine does it nevertheless; only the reply has no receiver.
        request.reply.send(Ok(Reply::Done));
    }
}
