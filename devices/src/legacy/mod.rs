// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few devices of a PC that a kernel expects before it has found any virtio device.
//!
//! May use: vm-superio and eventfds; no KVM: the machine maps their ports and connects their
//! interrupts (irqfd, edge-triggered). Each takes `&self`, so that a bus needs no lock of its own.
//!
//! - `serial.rs`: 16550 UART, the console
//! - `i8042.rs`: keyboard controller: reset, and a keyboard that can press Ctrl-Alt-Del
//! - `power.rs`: the ACPI sleep and reset registers

mod i8042;
pub mod power;
mod serial;

pub use i8042::{KeyboardBusy, KeyboardController};
pub use power::{PowerRegisters, PowerRequest};
pub use serial::{SerialError, SerialPort};
