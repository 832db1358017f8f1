// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of a Ballast machine: virtio devices, their transport, and the few legacy ones.
//!
//! This crate knows no KVM and no HTTP; it stands on `mm`.
//!
//! - `virtio/`: what every virtio device has in common, and a driver for tests
//! - `transport/`: how a driver reaches a device: virtio-mmio
//! - `gpu/`: virtio-gpu, whose guest pages move while in use
//! - `display/`: where scanouts are shown
//! - `legacy/`: serial port, keyboard controller, power registers
//! - `block/`: virtio-blk
//! - `entropy/`: virtio-rng
//! - `timer.rs`: a timer for what a device puts off
//! - `throttle.rs`: log lines that a guest can cause, limited in rate

pub mod balloon;
pub mod block;
pub mod display;
pub mod entropy;
pub mod gpu;
pub mod legacy;
pub mod throttle;
mod timer;
pub mod transport;
pub mod virtio;
