// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A configuration becomes a machine.
//!
//! ```text
//!  VmConfig ─▶ builder ─▶ attach/*: device, bus, thread ─▶ boot files ─▶ vCPUs ─▶ Vm
//! ```
//!
//! May use: `kvm`, `arch`, `vcpu`, `config`, `host`, `mmds`, `devices` and `mm`. Knows no API.
//!
//! - `builder.rs`: the numbered steps from a configuration to a [`Vm`]
//! - `error.rs`: why there is no machine
//! - `assembly.rs`: the machine while devices are added: buses, interrupt lines, threads
//! - `attach/`: one file a device: configuration to device, bus and thread
//! - `device_thread.rs`: a thread of a device's own, with an event loop
//! - `boot.rs`: kernel, initrd, command line and tables in guest memory
//! - `cpus.rs`: vCPUs with their CPUID and registers
//! - `bus.rs`: from an address that a vCPU touched to the device there
//! - `vm.rs`: the machine and its operations

mod assembly;
pub mod attach;
mod boot;
mod builder;
pub mod bus;
mod cpus;
mod device_thread;
mod error;
mod vm;

pub use assembly::{Assembly, Home};
pub use attach::gpu::Screens;
pub use builder::build;
pub use device_thread::DeviceThread;
pub use error::BuildError;
pub use vm::Vm;
