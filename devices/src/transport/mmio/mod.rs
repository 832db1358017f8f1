// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-mmio, version 2 (virtio 1.3, 4.2).
//!
//! The status register is a machine that a driver climbs step by step and leaves by reset only:
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK        any ─ write 0 ─▶ 0
//!                      features   queues         device active   any ─▶ FAILED
//! ```
//!
//! Steps out of order, cleared bits and registers written in the wrong step are ignored and logged,
//! as the standard leaves them undefined.
//!
//! Locks, in this order: `registers`, then the device. Interrupt status, device status, generation
//! and notifications take neither.
//!
//! - `register.rs`: offsets of the registers
//! - `access.rs`: reads and writes of each register except the status
//! - `status.rs`: the status machine

mod access;
pub mod register;
mod status;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::{MmioInterrupt, USED_BUFFER};
use super::register_page::RegisterPage;
use super::setup::QueueSetup;
use crate::virtio::{
    Deadline, GuestMemoryMmap, Locked, LongestHold, Progress, QueueHost, SharedDevice, VirtioDevice,
};

/// Size of one device's window in guest-physical address space, in bytes.
pub const REGION_SIZE: u64 = 0x1000;
const _: () = assert!(size_of::<RegisterPage>() as u64 == REGION_SIZE);

/// Maximum number of rounds of a queue that should finish on the notifying vCPU.
const MAX_ROUNDS_AT_NOTIFY: usize = 256;

/// Pause between two rounds of a clean-up, so that waiting threads get the device's lock: the mutex
/// is not fair.
const GAP: Duration = Duration::from_micros(50);
/// Pause between two rounds of a clean-up that waits for the host.
const HOST_GAP: Duration = Duration::from_millis(10);

/// A write that the hypervisor need not pass on: one of `value` (32 bits) at `offset` of the
/// device's window triggers `event`.
#[derive(Debug, Clone, Copy)]
pub struct Notifier<'a> {
    /// Offset within the device's window.
    pub offset: u64,
    /// What the driver writes: the number of the queue, or the interrupt's reasons.
    pub value: u32,
    /// Wakes the event loop, if it is for a queue.
    pub event: &'a EventFd,
}

/// One virtio-mmio device: its registers, and the device behind them.
pub struct MmioTransport {
    device: SharedDevice,
    mem: Arc<GuestMemoryMmap>,
    device_type: u32,
    features: u64,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<EventFd>,
    /// Acknowledgements of used buffers, handled in the hypervisor; no thread reads this event.
    acknowledged: EventFd,
    /// Queues that may have to run in the vCPU that notifies them.
    at_notify: Vec<bool>,
    /// Queues that the host's kernel processes.
    offloaded: Vec<bool>,
    /// Whether all registers are in the page that the guest may read.
    in_page: bool,
    /// Queues with remaining work, to which the event loop returns.
    resumed: Vec<AtomicBool>,
    registers: Mutex<Registers>,
    /// Makes the deadline of each round.
    deadline: fn() -> Deadline,
    most_work: AtomicU64,
}

/// Registers written by the driver, except the status.
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// A feature beyond the 64 that exist was accepted: there can be no agreement.
    unknown_features: bool,
    queue_sel: u32,
    shm_sel: u32,
    queues: Vec<QueueSetup>,
}

impl Registers {
    fn new(sizes: impl IntoIterator<Item = u16>) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            unknown_features: false,
            queue_sel: 0,
            shm_sel: 0,
            queues: sizes.into_iter().map(QueueSetup::new).collect(),
        }
    }

    fn selected(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(self.queue_sel as usize)
    }
}

impl MmioTransport {
    /// A transport for `device`, whose interrupt triggers `irq` (edge-triggered).
    ///
    /// # Errors
    ///
    /// When the host has no descriptor left for a queue's event.
    pub fn new(mem: Arc<GuestMemoryMmap>, device: SharedDevice, irq: EventFd) -> io::Result<Self> {
        let locked = device.lock();
        let (device_type, features) = (locked.device_type(), locked.features());
        let sizes = locked.queue_sizes().to_vec();
        let numbers = || (0..).zip(&sizes).map(|(queue, _)| queue);
        let at_notify = numbers().map(|queue| locked.runs_at_notify(queue)).collect();
        let offloaded = numbers().map(|queue| locked.is_offloaded(queue)).collect();
        let in_page = locked.publishes_config();
        drop(locked);
        let kicks: Vec<EventFd> =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        let transport = Self {
            device,
            mem,
            device_type,
            features,
            interrupt: Arc::new(MmioInterrupt::new(irq)),
            resumed: kicks.iter().map(|_| AtomicBool::new(false)).collect(),
            kicks,
            acknowledged: EventFd::new(EFD_NONBLOCK)?,
            at_notify,
            offloaded,
            in_page,
            registers: Mutex::new(Registers::new(sizes)),
            deadline: Deadline::new,
            most_work: AtomicU64::new(0),
        };
        transport.fill_page();
        Ok(transport)
    }

    /// Sets the constructor of each round's deadline; [`Deadline::new`] by default. Tests use it to
    /// limit rounds by work.
    #[must_use]
    pub fn with_deadline(self, make: fn() -> Deadline) -> Self {
        Self { deadline: make, ..self }
    }

    /// The longest time that the device's lock was held, by any thread, for metrics.
    pub fn longest_hold(&self) -> &LongestHold {
        self.device.longest_hold()
    }

    /// The most work that one round of processing did, in units of [`Deadline`].
    pub fn most_work(&self) -> u64 {
        self.most_work.load(Ordering::Relaxed)
    }

    fn lock(&self) -> Locked<'_, dyn VirtioDevice + 'static> {
        self.device.lock()
    }

    /// Processes queue `queue` once, within `deadline`.
    fn round(&self, queue: u16, deadline: &mut Deadline) -> Progress {
        let mut device = self.lock();
        let live = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.interrupt.status() & live != VIRTIO_CONFIG_S_DRIVER_OK {
            return Progress::Done;
        }
        let result = device.process(queue, deadline);
        self.most_work.fetch_max(deadline.spent(), Ordering::Relaxed);
        let progress = result.unwrap_or_else(|failure| {
            self.fail(&failure);
            Progress::Done
        });
        if let Some(resumed) = self.resumed.get(usize::from(queue)) {
            resumed.store(progress == Progress::More, Ordering::Relaxed);
        }
        let remains = device.take_remains();
        drop(device);
        drop(remains);
        progress
    }

    /// Schedules another round of queue `queue` in the event loop.
    fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // Fails only when the counter is full: then the loop is awake already.
            let _ = kick.write(1);
        }
    }

    /// Processes queue `queue` on the notifying vCPU: once, or until it is empty if the device
    /// requires that, but with a limit if other vCPUs keep filling it.
    fn process_at_notify(&self, queue: u16, finish: bool) {
        let rounds = if finish { MAX_ROUNDS_AT_NOTIFY } else { 1 };
        for _ in 0..rounds {
            if self.round(queue, &mut (self.deadline)()) == Progress::Done {
                return;
            }
            thread::sleep(GAP);
        }
        self.kick(queue);
    }

    /// The device behind the registers.
    pub fn device(&self) -> &SharedDevice {
        &self.device
    }

    /// The interrupt, to be connected by irqfd.
    pub fn interrupt(&self) -> &Arc<MmioInterrupt> {
        &self.interrupt
    }

    /// Writes to register as ioeventfds: notifications, and the acknowledgement of used buffers,
    /// which every interrupt ends with and nothing has to be done about ([`MmioInterrupt`]). The
    /// others, and those never registered, come through [`write`](Self::write).
    pub fn notifiers(&self) -> impl Iterator<Item = Notifier<'_>> {
        let queues = (0..).zip(&self.kicks).zip(&self.at_notify);
        let queues = queues.filter(|(_, at_notify)| !**at_notify);
        let notify = queues.map(|((value, event), _)| (register::QUEUE_NOTIFY, value, event));
        let acknowledge = (register::INTERRUPT_ACK, USED_BUFFER, &self.acknowledged);
        notify.chain([acknowledge]).map(|(offset, value, event)| Notifier { offset, value, event })
    }

    /// The page that the hypervisor may show the guest, read-only, in place of the window: then no
    /// read comes through [`read`](Self::read). It lives as long as the [`interrupt`](Self::interrupt).
    pub fn page(&self) -> Option<&RegisterPage> {
        self.in_page.then(|| self.interrupt.page())
    }

    /// A vCPU reads at `offset` of the window. Registers are 32 bits wide; anything else reads 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(config) = offset.checked_sub(register::CONFIG) {
            return self.lock().read_config(config, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    /// A vCPU writes at `offset` of the window. Registers are 32 bits wide; anything else is
    /// ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(register::CONFIG) {
            // A driver may write configuration from the moment it has found its device.
            if self.interrupt.status() & VIRTIO_CONFIG_S_DRIVER != 0 {
                self.lock().write_config(config, data);
                self.fill_page();
            }
            return;
        }
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
            // Neither changes what can be read, and neither may wait for the device.
            if ![register::QUEUE_NOTIFY, register::INTERRUPT_ACK].contains(&offset) {
                self.fill_page();
            }
        }
    }

    fn notify(&self, queue: u32) {
        let Ok(queue) = u16::try_from(queue) else { return };
        if self.at_notify.get(usize::from(queue)) == Some(&true) {
            let device = self.lock();
            let (here, finish) = (device.runs_at_notify(queue), device.finishes_at_notify(queue));
            drop(device);
            // The event loop finishes interrupted work: a guest that notifies repeatedly could
            // otherwise starve other threads of the device.
            let cut = self.resumed[usize::from(queue)].load(Ordering::Relaxed);
            if here && (finish || !cut) {
                return self.process_at_notify(queue, finish);
            }
        }
        self.kick(queue);
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueHost for MmioTransport {
    fn queue_events(&self) -> &[EventFd] {
        &self.kicks
    }

    fn is_watched(&self, queue: u16) -> bool {
        self.offloaded.get(usize::from(queue)) != Some(&true)
    }

    fn process_queue(&self, queue: u16) {
        if self.round(queue, &mut (self.deadline)()) == Progress::More {
            self.kick(queue);
        }
    }
}

/// Logs a driver's violation of the standard, with a limited rate.
fn note(what: &str) {
    tracing::warn!("virtio-mmio: {what}: ignored");
}
