// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of a Ballast machine: virtio devices, their transport, and the few legacy ones.
//!
//! This crate knows no KVM and no HTTP; it stands on `mm`. A device does not know its transport:
//! the monitor connects the two and forwards the guest's accesses to the transport.
//!
//! ```
//! use std::sync::Arc;
//!
//! use devices::entropy::Entropy;
//! use devices::transport::{MmioTransport, register};
//! use devices::virtio::{DeviceLock, GuestMemoryMmap, RateLimiter};
//! use vm_memory::GuestAddress;
//! use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
//!
//! let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let device = Arc::new(DeviceLock::new(Entropy::new(RateLimiter::unlimited())?));
//! let transport = MmioTransport::new(mem, device, EventFd::new(EFD_NONBLOCK)?)?;
//!
//! // A guest reads the device type: an entropy source (virtio 1.3, 5.4).
//! let mut word = [0; 4];
//! transport.read(register::DEVICE_ID, &mut word);
//! assert_eq!(u32::from_le_bytes(word), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - `virtio/`: common parts of all virtio devices
//! - `transport/`: how a driver reaches a device: virtio-mmio, and a driver for tests
//! - `balloon/`: virtio-balloon, which returns memory to the host, in whole blocks where possible
//! - `gpu/`: virtio-gpu, whose guest pages move while in use
//! - `display/`: where scanouts are shown
//! - `legacy/`: serial port, keyboard controller, power registers
//! - `block/`: virtio-blk
//! - `entropy/`: virtio-rng
//! - `net/`: virtio-net
//! - `vsock/`: virtio-vsock
//! - `latency.rs`: how long requests took, for metrics
//! - `timer.rs`: a timer for deferred work of a device
//! - `throttle.rs`: rate limit for events that a guest can cause

pub mod balloon;
pub mod block;
pub mod display;
pub mod entropy;
pub mod gpu;
mod latency;
pub mod legacy;
pub mod net;
pub mod throttle;
mod timer;
pub mod transport;
pub mod virtio;
pub mod vsock;
