// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device reaches its driver.

use vmm_sys_util::eventfd::EventFd;

/// How a device interrupts its driver; passed to it on activation. A trait although the transport is
/// its only implementor: devices do not depend on their transport.
pub trait Interrupt: Send + Sync {
    /// Used buffers were added to queue `queue` (virtio 1.3, 2.3).
    ///
    /// # Errors
    ///
    /// The host does not take the interrupt.
    fn signal_used_queue(&self, queue: u16) -> std::io::Result<()>;

    /// An event for the host's kernel, which interrupts the driver for used buffers by writing to it.
    /// Until the reset, the driver always reads used buffers as a reason for the interrupt: the
    /// monitor does not see when there are any.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    fn share(&self) -> std::io::Result<EventFd>;

    /// What configuration space now begins with, for drivers that read it without asking the device
    /// ([`VirtioDevice::publishes_config`](super::VirtioDevice::publishes_config)). Called with the
    /// device's lock held, before [`signal_config_change`](Self::signal_config_change).
    fn publish_config(&self, config: &[u8]);

    /// The device-specific configuration changed (virtio 1.3, 2.3).
    ///
    /// The transport raises the configuration generation before it interrupts.
    ///
    /// # Errors
    ///
    /// The host does not take the interrupt.
    fn signal_config_change(&self) -> std::io::Result<()>;

    /// The device cannot continue: sets DEVICE_NEEDS_RESET and notifies the driver (virtio 1.3,
    /// 2.1.2).
    ///
    /// For failures found outside `process`, such as in a thread of the device's own; `process`
    /// just returns its error.
    ///
    /// # Errors
    ///
    /// The host does not take the interrupt.
    fn signal_needs_reset(&self) -> std::io::Result<()>;
}
