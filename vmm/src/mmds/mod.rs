// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metadata service: a JSON document that the host sets and the guest reads by HTTP at a
//! link-local address, as from Firecracker's MMDS and EC2's IMDS.
//!
//! ```text
//! PUT, PATCH /mmds ──▶ store ◀── http ◀── TCP (devices::net) ◀── the guest's interface
//!                                 └─▶ token
//! ```
//!
//! May use: wire types of `config`, the TCP service of `devices::net`. Must not use: `api`,
//! `control`, the machine.
//!
//! - `store.rs`: the document
//! - `token.rs`: session tokens
//! - `http.rs`: the guest's requests and the replies to them

mod http;
mod store;
#[cfg(test)]
mod tests;
mod token;

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::net::{Service, TcpCounters};

pub use http::Http;
pub use store::{Store, StoreError};

use token::Tokens;

/// Port of the service.
pub const PORT: u16 = 80;
/// Its Ethernet address, which guests of Firecracker may have configured.
pub const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Its address unless another is configured.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Most bytes of metadata unless another limit is given, as in Firecracker.
pub const DEFAULT_LIMIT: usize = 51_200;

/// Which requests of the guest need a token, and the form of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmdsRules {
    /// A GET without a valid token is refused (version 2).
    pub tokens_required: bool,
    /// Plain text whatever the guest accepts, as EC2 replies.
    pub always_plain: bool,
}

/// The service's requests that came without a valid token.
#[derive(Debug, Default, serde::Serialize)]
pub struct TokenCounters {
    /// With one that is unknown or has expired.
    pub rx_invalid_token: AtomicU64,
    /// Without one.
    pub rx_no_token: AtomicU64,
}

/// The service, shared by the API and the interfaces that it is reached on.
#[derive(Debug, Clone)]
pub struct Mmds(Arc<MmdsState>);

#[derive(Debug)]
struct MmdsState {
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    token_counters: TokenCounters,
    tcp_counters: Arc<TcpCounters>,
}

impl Mmds {
    /// A service without metadata, which may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(MmdsState {
            store: Mutex::new(Store::new(limit)),
            tokens: Mutex::default(),
            token_counters: TokenCounters::default(),
            tcp_counters: Arc::default(),
        }))
    }

    /// The document. Hold the lock only for as long as it takes to copy a part of it.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The HTTP service for one interface, to be put behind TCP.
    pub fn service(&self, rules: MmdsRules) -> Box<dyn Service> {
        Box::new(Http::new(self.clone(), rules))
    }

    /// What has happened on all interfaces.
    pub fn tcp_counters(&self) -> &Arc<TcpCounters> {
        &self.0.tcp_counters
    }

    /// Requests without valid tokens.
    pub fn token_counters(&self) -> &TokenCounters {
        &self.0.token_counters
    }
}
