// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! State shared by the host's and the guest's side: the document, the tokens, the counters.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::net::TcpCounters;

use super::store::MetadataStore;
use super::token::Tokens;

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
    store: Mutex<MetadataStore>,
    tokens: Mutex<Tokens>,
    token_counters: TokenCounters,
    tcp_counters: Arc<TcpCounters>,
}

impl Mmds {
    /// A service without metadata, which may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(MmdsState {
            store: Mutex::new(MetadataStore::new(limit)),
            tokens: Mutex::default(),
            token_counters: TokenCounters::default(),
            tcp_counters: Arc::default(),
        }))
    }

    /// The document. Hold the lock only while copying a part of it.
    pub fn store(&self) -> MutexGuard<'_, MetadataStore> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The issued tokens. Hold the lock only for one lookup.
    pub(super) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters over all interfaces.
    pub fn tcp_counters(&self) -> &Arc<TcpCounters> {
        &self.0.tcp_counters
    }

    /// Requests without valid tokens.
    pub fn token_counters(&self) -> &TokenCounters {
        &self.0.token_counters
    }
}
