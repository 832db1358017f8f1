// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One monitor's life, from outside: console, signals, terminals and sockets, with guests of a few
//! instructions. Needs a /dev/kvm, of software too; without one each test says so and does nothing.
//!
//! - `guest.rs`: the guests
//! - `monitor.rs`: a monitor under test
//! - `configurations.rs`: the configurations in the folder resources
//! - `ends.rs`: every way to end it, with any behaviour of its guest and its readers
//! - `many.rs`: many of them with devices, side by side and one after another
//! - `consoles.rs`: files, FIFOs, pseudo-terminals and sockets as the console
//! - `firecracker.rs`: in Firecracker's place: status codes, log, names, exit codes, metrics
//! - `user_network.rs`: passt beside the monitor
//! - `vhost_net.rs`: a host with vhost-net, or without
//! - `starts.rs`: starts that fail, and are tried again
//! - `terminals.rs`: foreground, background and raw mode

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "closures between fork and exec")]

mod configurations;
mod consoles;
mod ends;
mod firecracker;
mod guest;
mod many;
mod monitor;
mod starts;
mod terminals;
mod user_network;
mod vhost_net;
