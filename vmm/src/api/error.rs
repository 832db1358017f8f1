// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Error responses: `{"fault_message": …}`, always with status 400 as in Firecracker, except for
//! metadata beyond its limit.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::refusal::Refusal;

/// Body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FaultMessage {
    /// Description of the error.
    pub fault_message: String,
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The machine refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The name in the path is not the one in the body.
    #[error("The name `{path}` in the path is not the name `{body}` in the body.")]
    OtherId {
        /// The name in the path.
        path: String,
        /// The name in the body.
        body: String,
    },
    /// No such path, or not with this method.
    #[error("Invalid request method and/or path: {method} {path}.")]
    NoSuchPath {
        /// The method.
        method: Method,
        /// The path.
        path: String,
    },
    /// A path of Firecracker's for something that Ballast does not have.
    #[error("Ballast does not offer {0}.")]
    NotOffered(&'static str),
    /// A body where there should be none.
    #[error("A {0} request to this path takes no body.")]
    UnwantedBody(Method),
    /// No body where there should be one.
    #[error("A {0} request to this path needs a JSON body.")]
    MissingBody(Method),
    /// The body is larger than the server takes.
    #[error("The body of the request is larger than {limit} bytes (--http-api-max-payload-size).")]
    TooLarge {
        /// Most bytes taken.
        limit: usize,
    },
    /// The bytes are not an HTTP/1 request.
    #[error("This is not an HTTP request: {0}.")]
    NotHttp(String),
    /// The body is not the JSON that belongs here.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    /// The reply does not belong to the action: an internal error.
    #[error("Internal error: unexpected reply.")]
    WrongReply,
}

impl ApiError {
    /// Checks that a device's name is the same in path and body.
    ///
    /// # Errors
    ///
    /// It is not.
    pub(super) fn check_id(path: &str, body: &str) -> Result<(), Self> {
        match path == body {
            true => Ok(()),
            false => Err(Self::OtherId { path: path.to_owned(), body: body.to_owned() }),
        }
    }

    /// The error for a path that is not there.
    pub fn no_such_path(method: Method, uri: &Uri) -> Self {
        Self::NoSuchPath {
            method,
            path: uri.path_and_query().map_or_else(String::new, ToString::to_string),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Refused(Refusal::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        let body = FaultMessage { fault_message: self.to_string() };
        (status, Json(body)).into_response()
    }
}
