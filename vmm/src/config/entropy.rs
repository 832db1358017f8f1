// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `entropy`: the guest's source of random numbers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rate_limiter::RateLimiterConfig;

/// A virtio entropy device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits of bytes and requests.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiterConfig>,
}
