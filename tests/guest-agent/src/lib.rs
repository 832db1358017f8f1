// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent in the guest and the harness outside must agree on.
//!
//! - `frame.rs`     the lines that go over the console
//! - `checksum.rs`  of pictures and pages
//! - `pattern.rs`   what pages are filled with
//!
//! The agent itself is the binary of this package; `main.rs` lists its files.

pub mod checksum;
pub mod frame;
pub mod pattern;

/// What the agent prints, on a line of its own, once it takes requests.
pub const READY: &str = "ballast-agent: ready";
