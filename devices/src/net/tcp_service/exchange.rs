// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The protocol above TCP, which a user of this module brings.

use std::time::Instant;

/// A service's response to the bytes received so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// The request is not complete yet.
    Incomplete,
    /// The first `consumed` bytes are a request, and this is the answer.
    Reply {
        /// Bytes of the request.
        consumed: usize,
        /// What to send.
        bytes: Vec<u8>,
        /// Whether the connection ends after it.
        close: bool,
    },
}

/// The protocol spoken on each connection. It has no state of its own per connection. A trait although
/// the metadata service is its only implementor: this crate does not depend on HTTP.
pub trait Service: Send {
    /// Answers the request at the beginning of `received`; `full` if no more bytes can arrive
    /// before some are consumed.
    fn answer(&mut self, received: &[u8], full: bool, now: Instant) -> Exchange;
}
