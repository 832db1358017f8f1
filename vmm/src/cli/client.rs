// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request to a running monitor, over its socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::api::error::FaultMessage;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No monitor listens there.
    #[error("API socket {}: {cause}; is a machine running with this --api-sock?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// The connection broke.
    #[error("API socket {}: {cause}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
    /// The monitor says no.
    #[error("{0}")]
    Refused(String),
}

/// Sends one request; returns the response's JSON, `Null` if it has none.
pub(super) fn request(
    path: &Path,
    method: Method,
    resource: &str,
    body: Option<&Value>,
) -> Result<Value, ClientError> {
    let bytes = exchange(path, method, resource, "application/json", body)?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| ClientError::Broken { path: path.to_owned(), cause: error.to_string() })
}

/// Asks for something that is no JSON.
pub(super) fn get_bytes(
    path: &Path,
    resource: &str,
    accept: &'static str,
) -> Result<Bytes, ClientError> {
    exchange(path, Method::GET, resource, accept, None)
}

fn exchange(
    path: &Path,
    method: Method,
    resource: &str,
    accept: &'static str,
    body: Option<&Value>,
) -> Result<Bytes, ClientError> {
    let broken = |cause: String| ClientError::Broken { path: path.to_owned(), cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| broken(error.to_string()))?;
    runtime.block_on(async {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|cause| ClientError::Connect { path: path.to_owned(), cause })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
        tokio::spawn(connection);
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(resource)
            .header(HOST, "localhost")
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|error| broken(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?
            .to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    })
}

/// The response; the fault message if the server is a monitor.
fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    let message = serde_json::from_slice::<FaultMessage>(bytes).map_or_else(
        |_| format!("{status}: {}", String::from_utf8_lossy(bytes)),
        |fault| fault.fault_message,
    );
    ClientError::Refused(message)
}
