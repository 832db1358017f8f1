// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device (virtio 1.3, 5.4): the guest hands in empty buffers, the device fills them
//! from the host kernel's random number generator.
//!
//! May use: `virtio`, getrandom(2).
//!
//! Threads: the device's own event loop runs its queue; vCPUs only activate and reset it.
//!
//! - `device.rs`: the device
//! - `handle.rs`: limits changed and counters read from other threads

mod device;
mod handle;
#[cfg(test)]
mod tests;

pub use device::Entropy;
pub use handle::{EntropyCounters, EntropyHandle};
