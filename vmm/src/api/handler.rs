// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Common parts of the handlers of all resources. A resource knows only its own actions and
//! replies: it passes its actions to an [`Asker`], and `resources.rs` connects that to the machine.

use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};

use super::error::ApiError;

/// What a handler returns.
pub(super) type HandlerResult = Result<Response, ApiError>;

/// For resources whose actions succeed with nothing to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoReply {}

/// A reply that is awaited: `None` if the action is done with nothing to report.
type Asked<R> = Pin<Box<dyn Future<Output = Result<Option<R>, ApiError>> + Send>>;

/// Passes actions of one resource, `A`, to the machine, which replies with an `R`; cheap to clone.
pub(super) struct Asker<A, R = NoReply>(Arc<dyn Fn(A) -> Asked<R> + Send + Sync>);

impl<A, R> Asker<A, R> {
    /// An asker that passes each action to `ask`.
    pub(super) fn new<F>(ask: impl Fn(A) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<R>, ApiError>> + Send + 'static,
    {
        Self(Arc::new(move |action| Box::pin(ask(action))))
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    ///
    /// The machine refused, or gave a reply of another resource.
    pub(super) async fn ask(&self, action: A) -> Result<Option<R>, ApiError> {
        (self.0)(action).await
    }
}

impl<A, R> Clone for Asker<A, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Asks for something that has nothing to report but success: 204.
pub(super) async fn done<A, R>(machine: &Asker<A, R>, action: A) -> HandlerResult {
    match machine.ask(action).await? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(_) => Err(ApiError::WrongReply),
    }
}

/// Asks for something, and picks the reply that belongs to it: 200 with JSON.
pub(super) async fn report<A, R, T: serde::Serialize>(
    machine: &Asker<A, R>,
    action: A,
    pick: impl FnOnce(R) -> Option<T>,
) -> HandlerResult {
    match machine.ask(action).await?.and_then(pick) {
        Some(body) => Ok(Json(body).into_response()),
        None => Err(ApiError::WrongReply),
    }
}

/// `reported!(machine, action, NameReply::Variant)`.
macro_rules! reported {
    ($machine:expr, $action:expr, $reply:path) => {
        $crate::api::handler::report(&$machine, $action, |reply| match reply {
            $reply(body) => Some(body),
            #[allow(unreachable_patterns, reason = "not where a resource has one reply only")]
            _ => None,
        })
        .await
    };
}
pub(super) use reported;

/// Marks an answer, be it a refusal, as one to a request that uses something deprecated if it does, as
/// Firecracker does.
pub(super) fn deprecated_if(uses: bool, answer: HandlerResult) -> HandlerResult {
    if !uses {
        return answer;
    }
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    response.headers_mut().insert("Deprecation", HeaderValue::from_static("true"));
    Ok(response)
}
