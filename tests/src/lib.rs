// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Harness for tests, benches and the demo: it starts monitors with real guests, talks to both
//! sides and reads the host's own view. It sees Ballast only as its users do: the binary, its
//! flags, its socket.
//!
//! - `payload.rs`   the kernels, initial RAM disks and binaries that guests are started from
//! - `monitor/`     a monitor process with a guest in it: Ballast, or a peer
//! - `confine.rs`   a monitor on a host that lacks features
//! - `swap.rs`      swap on zram
//! - `syscalls.rs`  system calls of a process, counted by the kernel's tracer
//! - `userland.rs`  what the programs of an ordinary system are made of, as a disk
//! - `console.rs`   the guest's serial console: lines, waited for with a limit
//! - `agent.rs`     the agent in the guest: commands and answers
//! - `debian.rs`    a guest that runs Debian, with a root shell on vsock
//! - `guest.rs`     a running guest: monitor, console and agent in one
//! - `service.rs`   a client of the web service in a guest
//! - `api.rs`       HTTP over a Unix socket
//! - `bare.rs`      what the host takes for a piece of work without a guest
//! - `host.rs`      the host's meminfo, buddyinfo and a process's mappings
//! - `picture.rs`   what a scanout shows
//! - `places.rs`    where in its memory a guest has its pages
//! - `fragments.rs` what GPU buffers do to a guest's memory
//! - `figures.rs`   the lines that a bench closes with
//! - `limits.rs`    how much longer than usual everything may take
//! - `runner.rs`    runs tests one by one, each in a process of its own, with time limits
//! - `progress.rs`  how far they have come, for when the machine crashes under them
//! - `claims.rs`    which machine takes which test
//! - `error.rs`     the error type, and the macros that tests check with

#![allow(
    clippy::missing_errors_doc,
    reason = "all of the harness fails alike: the host or the guest did not do what was expected"
)]

pub mod agent;
pub mod api;
pub mod bare;
pub mod claims;
pub mod confine;
pub mod console;
pub mod debian;
mod error;
pub mod figures;
pub mod fragments;
pub mod guest;
pub mod host;
pub mod limits;
pub mod monitor;
pub mod payload;
pub mod picture;
pub mod places;
pub mod progress;
pub mod runner;
pub mod service;
pub mod swap;
pub mod syscalls;
pub mod userland;

pub use error::{Error, Result};
