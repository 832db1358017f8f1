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
//! - `state.rs`: state shared by the host's and the guest's side
//! - `store.rs`: the document
//! - `token.rs`: session tokens
//! - `http.rs`: the guest's requests and the replies to them

mod http;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod token;

use std::net::Ipv4Addr;

pub use http::{Http, MmdsRules};
pub use state::{Mmds, TokenCounters};
pub use store::{MetadataError, MetadataStore};

/// Port of the service.
pub const PORT: u16 = 80;
/// Its Ethernet address, which guests of Firecracker may have configured.
pub const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Its address unless another is configured.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Default limit on the size of metadata, in bytes, as in Firecracker.
pub const DEFAULT_LIMIT: usize = 51_200;
