// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a whole request to an answer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, Request, Uri};
use tower::ServiceExt;
use tracing::debug;

use super::path::canonical;
use crate::api::body::RawBody;
use crate::api::channel::ActionSender;
use crate::api::error::ApiError;
use crate::api::stats::ApiStats;

/// Turns one request into one answer; cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiService {
    machine: ActionSender,
    /// Built for the first request: a monitor without clients does not need the memory.
    router: Arc<OnceLock<Router>>,
    pub(super) stats: Arc<ApiStats>,
    pub(super) max_payload_bytes: usize,
}

impl ApiService {
    /// A service whose actions go through `machine`, with bodies of at most `max_payload_bytes`.
    pub fn new(machine: ActionSender, stats: Arc<ApiStats>, max_payload_bytes: usize) -> Self {
        Self { machine, router: Arc::default(), stats, max_payload_bytes }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Bytes>) -> Response {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let response = match self.prepare(request) {
            Ok(request) => self.router().oneshot(request).await.into_response(),
            Err(error) => error.into_response(),
        };
        self.count(&method, &path, &response);
        response
    }

    fn router(&self) -> Router {
        self.router.get_or_init(|| crate::api::router(self.machine.clone())).clone()
    }

    /// Responds to a request whose body cannot be accepted.
    pub(super) fn refuse(&self, method: &Method, path: &str, error: ApiError) -> Response {
        let response = error.into_response();
        self.count(method, path, &response);
        response
    }

    fn count(&self, method: &Method, path: &str, response: &Response) {
        self.stats.count(method, path, response.status().is_success());
        if response.headers().contains_key("deprecation") {
            self.stats.deprecated.fetch_add(1, Ordering::Relaxed);
        }
        debug!(%method, path, status = response.status().as_u16(), "API request");
    }

    /// Performs checks that need no resource, and converts the request for the routes.
    fn prepare(&self, request: Request<Bytes>) -> Result<Request<Body>, ApiError> {
        let (mut parts, body) = request.into_parts();
        let no_such_path =
            |parts: &http::request::Parts| ApiError::no_such_path(parts.method.clone(), &parts.uri);
        if ![Method::GET, Method::PUT, Method::PATCH, Method::DELETE].contains(&parts.method) {
            return Err(no_such_path(&parts));
        }
        let Some(path) = canonical(&parts.method, &parts.uri) else {
            return Err(no_such_path(&parts));
        };
        if parts.method == Method::GET && !body.is_empty() {
            return Err(ApiError::UnwantedBody(parts.method));
        }
        if body.len() > self.max_payload_bytes {
            return Err(ApiError::TooLarge { limit: self.max_payload_bytes });
        }
        let uri = path.parse::<Uri>().map_err(|_| no_such_path(&parts))?;
        parts.uri = uri;
        parts.extensions.insert(RawBody(body));
        Ok(Request::from_parts(parts, Body::empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::channel::channel;

    #[tokio::test]
    async fn all_connections_share_routes_that_the_first_request_builds() {
        let (machine, _requests) = channel().unwrap();
        let service = ApiService::new(machine, Arc::default(), 0);
        let connection = service.clone();
        assert!(service.router.get().is_none());
        let request = Request::get("/nowhere").body(Bytes::new()).unwrap();
        assert_eq!(connection.answer(request).await.status(), http::StatusCode::BAD_REQUEST);
        assert!(service.router.get().is_some());
    }
}
