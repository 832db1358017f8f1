// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt status, device status and configuration generation of one transport.
//!
//! A guest reads and acknowledges the interrupt status with its interrupts off; that must never
//! wait for a device that is busy giving memory back. So these are atomics, and the mutex of the
//! device is not involved.
//!
//! An acknowledgement of used buffers alone may stay with the hypervisor, which saves each interrupt
//! an exit to the monitor; then their bit stays set. To a driver that is the same as one more
//! interrupt for buffers that it has seen: it looks at its rings and finds nothing. A changed
//! configuration is always told apart.
//!
//! For the same reason the host's kernel can interrupt the driver without the monitor
//! ([`Interrupt::share`]): then the bit is set at all times.
//!
//! All three are in the page that the guest may read without the monitor ([`RegisterPage`]).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{fmt, io};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmm_sys_util::eventfd::EventFd;

use super::mmio::register;
use super::register_page::RegisterPage;
use crate::virtio::Interrupt;

/// Bit of the interrupt status: used buffers (virtio 1.3, 4.2.2).
pub(super) const USED_BUFFER: u32 = 1;
/// Bit of the interrupt status: configuration change.
const CONFIG_CHANGE: u32 = 2;

/// The interrupt of a virtio-mmio device. Each signal pulses the line once, or, without one or while
/// others write to the event, triggers the event: connect both to an edge-triggered line.
#[derive(Debug)]
pub struct MmioInterrupt {
    page: Box<RegisterPage>,
    /// Others write to `event`, for used buffers.
    shared: AtomicBool,
    event: EventFd,
    line: OnceLock<PulsedLine>,
}

/// What raises and lowers an interrupt line.
struct PulsedLine {
    /// Held during a pulse: a line that another thread has just raised would not rise again, and the
    /// guest, which may have looked already, would miss the second interrupt.
    turn: Mutex<()>,
    pulse: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl PulsedLine {
    fn pulse(&self) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        (self.pulse)()
    }
}

impl fmt::Debug for PulsedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PulsedLine")
    }
}

impl MmioInterrupt {
    /// An interrupt that triggers `event`.
    pub(super) fn new(event: EventFd) -> Self {
        let (page, line) = (RegisterPage::new(), OnceLock::new());
        Self { page, shared: AtomicBool::new(false), event, line }
    }

    /// All registers of the device, as the guest may read them.
    pub fn page(&self) -> &RegisterPage {
        &self.page
    }

    /// The event that triggers an interrupt, for irqfd: of the host's kernel, and of this device as
    /// long as there is no line.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Interrupts by `pulse` from now on, which must not block. Only the first call counts.
    pub fn connect(&self, pulse: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        self.line.get_or_init(|| PulsedLine { turn: Mutex::new(()), pulse: Box::new(pulse) });
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending_word().load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        let kept = if self.shared.load(Ordering::Acquire) { USED_BUFFER } else { 0 };
        self.pending_word().fetch_and(!bits | kept, Ordering::AcqRel);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation_word().load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> u32 {
        self.status_word().load(Ordering::Acquire)
    }

    pub(super) fn add_status(&self, bits: u32) {
        self.status_word().fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn reset(&self) {
        self.shared.store(false, Ordering::Release);
        self.status_word().store(0, Ordering::Release);
        self.pending_word().store(0, Ordering::Release);
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.pending_word().fetch_or(bit, Ordering::AcqRel);
        // The host's kernel pulses a shared line by the event, one pulse after the other.
        match self.line.get().filter(|_| !self.shared.load(Ordering::Acquire)) {
            Some(line) => line.pulse(),
            None => self.event.write(1),
        }
    }

    fn pending_word(&self) -> &AtomicU32 {
        self.page.word(register::INTERRUPT_STATUS)
    }

    fn status_word(&self) -> &AtomicU32 {
        self.page.word(register::STATUS)
    }

    fn generation_word(&self) -> &AtomicU32 {
        self.page.word(register::CONFIG_GENERATION)
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_used_queue(&self, _queue: u16) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    fn share(&self) -> io::Result<EventFd> {
        let event = self.event.try_clone()?;
        self.shared.store(true, Ordering::Release);
        self.pending_word().fetch_or(USED_BUFFER, Ordering::AcqRel);
        Ok(event)
    }

    fn publish_config(&self, config: &[u8]) {
        // A driver that reads some of it before and some after sees another generation.
        self.generation_word().fetch_add(1, Ordering::AcqRel);
        self.page.set_config(config);
    }

    fn signal_config_change(&self) -> io::Result<()> {
        self.generation_word().fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE)
    }

    fn signal_needs_reset(&self) -> io::Result<()> {
        let before = self.status_word().fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        // Only a driver that is up has a use for the interrupt (virtio 1.3, 2.1.2).
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            return self.signal_config_change();
        }
        Ok(())
    }
}
