// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One file per device: its section of the configuration becomes a device on a bus, with a thread
//! that serves it. docs/adding-a-device.md lists what else a new device needs.
//!
//! - `platform.rs`: serial port, keyboard controller, power registers
//! - `balloon.rs`: the balloon
//! - `drives.rs`: disks
//! - `network_interfaces.rs`: network interfaces
//! - `vsock.rs`: streams between guest and host
//! - `entropy.rs`: the source of random numbers
//! - `gpu.rs`: the display and the socket where it can be watched

pub mod balloon;
pub mod drives;
pub mod entropy;
pub mod gpu;
pub mod network_interfaces;
pub mod platform;
pub mod vsock;

use std::sync::Arc;

use devices::balloon::Balloon;
use devices::virtio::DeviceLock;

use super::assembly::Assembly;
use super::error::BuildError;

/// A machine's devices, as requests reach them. A field a device, in the order of their windows.
pub struct Devices {
    /// What every PC has.
    pub platform: platform::Platform,
    /// The balloon, if one is configured; its queues and requests share it.
    pub balloon: Option<Arc<DeviceLock<Balloon>>>,
    /// The display, if one is configured.
    pub gpu: Option<gpu::Screens>,
    /// Disks, the root device first.
    pub drives: Vec<drives::Drive>,
    /// Network interfaces.
    pub interfaces: Vec<network_interfaces::Interface>,
    /// Streams between guest and host, if configured.
    pub vsock: Option<vsock::AttachedVsock>,
    /// The source of random numbers, if one is configured.
    pub entropy: Option<devices::entropy::EntropyHandle>,
}

/// Attaches every configured device, one line per device. The order determines windows and
/// interrupt lines, so add new ones at the end.
pub(super) fn all(machine: &mut Assembly<'_>) -> Result<Devices, BuildError> {
    Ok(Devices {
        platform: platform::attach(machine)?,
        balloon: balloon::attach(machine)?,
        gpu: gpu::attach(machine)?,
        drives: drives::attach(machine)?,
        interfaces: network_interfaces::attach(machine)?,
        vsock: vsock::attach(machine)?,
        entropy: entropy::attach(machine)?,
    })
}
