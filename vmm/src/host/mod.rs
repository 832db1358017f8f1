// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host outside this process: everything that could block, fill up or vanish.
//!
//! May use: rustix, libc, tracing. Knows no machine, no device and no API.
//!
//! - `files.rs`: every file whose path a user names
//! - `contents.rs`: what is in a file that is given as a kernel or an initrd
//! - `memory_figures.rs`: available memory, and memory stalls
//! - `control_group.rs`: memory limits of this process's groups
//! - `sockets/`: Unix sockets that others connect to
//! - `passt.rs`: a process that gives a guest the host's network
//! - `ring/`: bounded output that never makes its writer wait
//! - `descriptor.rs`: writes to descriptors of the outside
//! - `log.rs`: the monitor's log
//! - `log_format.rs`: its lines in Firecracker's form
//! - `spanless.rs`: a log without spans
//! - `throttle.rs`: rate limit for log lines of one kind
//! - `input.rs`: standard input, shared with other processes
//! - `open_files.rs`: how many descriptors there are, and who may have them
//! - `terminal.rs`: standard input in raw mode, restored on every exit path

pub mod contents;
pub(crate) mod control_group;
pub mod descriptor;
pub mod files;
pub mod input;
pub mod log;
mod log_format;
pub mod memory_figures;
pub mod open_files;
pub mod passt;
pub mod ring;
pub mod sockets;
mod spanless;
pub mod terminal;
mod throttle;
