// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host outside this process: everything that could block, fill up or vanish.
//!
//! May use: rustix, libc, tracing. Knows no machine, no device and no API.
//!
//! - `log.rs`: the monitor's log
//! - `terminal.rs`: standard input in raw mode, and as it was before on every way out

pub mod log;
pub mod terminal;
