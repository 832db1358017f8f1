// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every implementor of a trait owes to those who use it: one suite a trait, run on all of
//! them. What is special to one of them is tested where it is written.
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
