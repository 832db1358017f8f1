// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contract tests of traits: one suite per trait, run on all its implementors. Specific behaviour
//! is tested with the implementation.
//!
//! - `backing.rs` kinds of guest memory: [`mm::backing::Backing`]
//! - `codec.rs`   ways to compress a page: [`mm::store::Codec`]
//! - `device.rs`  virtio devices: [`devices::virtio::VirtioDevice`]
//! - `page_source.rs` where absent pages come from: [`mm::paging::PageSource`]

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod backing;
mod codec;
mod device;
mod page_source;
