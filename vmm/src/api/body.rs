// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Request bodies as received by handlers.
//!
//! The server has read the whole body, within its limit, before a handler sees the request
//! ([`super::server::ApiService`]); so these never wait. The content type is not looked at: clients of
//! Firecracker send all kinds.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::config::from_slice;

/// The whole body of a request; the server puts it into the request's extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct RawBody(pub(super) Bytes);

fn take(request: &mut Request) -> Bytes {
    request.extensions_mut().remove::<RawBody>().unwrap_or_default().0
}

/// A body that must be there.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = take(&mut request);
        if bytes.is_empty() {
            return Err(ApiError::MissingBody(request.method().clone()));
        }
        Ok(Self(from_slice(&bytes)?))
    }
}

/// A body that may be left out, which means the default.
#[derive(Debug)]
pub(super) struct OptionalBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = take(&mut request);
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        Ok(Self(from_slice(&bytes)?))
    }
}
