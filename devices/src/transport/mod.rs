// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a driver reaches a device. A transport owns the registers, the status machine and the
//! interrupt; the device behind it sees none of them.
//!
//! May use: `virtio`, vm-memory, eventfds; no KVM: the machine registers the notifiers (ioeventfd)
//! and connects the interrupt (irqfd).
//!
//! - `mmio/`: virtio-mmio version 2, the registers
//! - `interrupt.rs`: the part of its state that interrupt handlers read, without locks
//! - `register_page.rs`: the registers as a page that the guest may read without an exit
//! - `mock.rs` (feature `test-utils`): a driver for tests, benches and fuzzing of every device
//! - `setup.rs`: a queue as the driver describes it, checked when it is made ready

mod interrupt;
mod mmio;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
mod register_page;
mod setup;

#[cfg(test)]
mod tests;

pub use interrupt::MmioInterrupt;
pub use mmio::{MmioTransport, Notifier, REGION_SIZE, register};
pub use register_page::RegisterPage;
