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
//! A step out of order, a bit taken away and a register written in the wrong step are ignored, as
//! the standard leaves them undefined; the log says so.
//!
//! Locks, in this order: `registers`, then the device. Interrupt status, device status, generation
//! and notifications take neither.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::MmioInterrupt;
use super::setup::{QueueSetup, Ring};
use crate::virtio::{
    Activation, Deadline, DeviceQueue, GuestMemoryMmap, Hold, Interrupt, LongestHold, Progress,
    QueueHost, SharedDevice, VirtioDevice,
};

/// Bytes of guest-physical address space that one device takes.
pub const REGION_SIZE: u64 = 0x1000;

/// Most rounds of a queue that is to finish in the vCPU that notified it.
const MAX_ROUNDS_AT_NOTIFY: usize = 256;

/// Offsets of the registers (virtio 1.3, 4.2.2).
pub mod register {
    /// "virt".
    pub const MAGIC: u64 = 0x000;
    /// Version of the transport: 2.
    pub const VERSION: u64 = 0x004;
    /// Device type.
    pub const DEVICE_ID: u64 = 0x008;
    /// Vendor of the device.
    pub const VENDOR_ID: u64 = 0x00c;
    /// Features offered, 32 bits of them.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32 bits.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// Features accepted, 32 bits of them.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32 bits.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Queue that the registers below are about.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Largest size of the queue, 0 if there is none.
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Size of the queue.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Whether the queue is in use.
    pub const QUEUE_READY: u64 = 0x044;
    /// A queue has new buffers.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Why the interrupt.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Reasons that the driver has seen.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Device status.
    pub const STATUS: u64 = 0x070;
    /// Descriptor table, low half.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Descriptor table, high half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Available ring, low half.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Available ring, high half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Used ring, low half.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Used ring, high half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Shared-memory region that the registers below are about.
    pub const SHM_SEL: u64 = 0x0ac;
    /// Its length, low half; all ones if there is none.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Its length, high half.
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// Its address, low half.
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// Its address, high half.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes with the configuration.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Where configuration space begins.
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Pause between two rounds of a clean-up, in which a thread that waits for the device's lock gets it:
/// the mutex is not fair.
const GAP: Duration = Duration::from_micros(50);
/// "BLST", little-endian.
const VENDOR: u32 = u32::from_le_bytes(*b"BLST");

/// The steps of the status machine, each with the bits that must be there before.
const STEPS: [(u32, u32); 4] = [
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
    (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
    (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
];

/// A notification to register with the hypervisor: a write of `value` (32 bits) at `offset` of the
/// device's window triggers `event`.
#[derive(Debug, Clone, Copy)]
pub struct Notifier<'a> {
    /// Offset within the device's window.
    pub offset: u64,
    /// What the driver writes: the number of the queue.
    pub value: u32,
    /// Wakes the event loop.
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
    /// Queues that may have to run in the vCPU that notifies them.
    at_notify: Vec<bool>,
    /// Queues with more to do, which the event loop comes back to.
    resumed: Vec<AtomicBool>,
    registers: Mutex<Registers>,
    /// Makes the deadline of each round.
    deadline: fn() -> Deadline,
    longest_hold: LongestHold,
    most_work: AtomicU64,
}

/// What a driver has written so far, but for the status.
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
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

impl MmioTransport {
    /// A transport for `device`, whose interrupt triggers `irq` (edge-triggered).
    ///
    /// # Errors
    ///
    /// When the host has no descriptor left for a queue's event.
    pub fn new(mem: Arc<GuestMemoryMmap>, device: SharedDevice, irq: EventFd) -> io::Result<Self> {
        let (device_type, features, sizes, at_notify) = {
            let device = lock(&device);
            let sizes = device.queue_sizes().to_vec();
            let at_notify = (0..).zip(&sizes).map(|(queue, _)| device.runs_at_notify(queue));
            (device.device_type(), device.features(), sizes.clone(), at_notify.collect())
        };
        let kicks: Vec<EventFd> =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        Ok(Self {
            device,
            mem,
            device_type,
            features,
            interrupt: Arc::new(MmioInterrupt::new(irq)),
            resumed: kicks.iter().map(|_| AtomicBool::new(false)).collect(),
            kicks,
            at_notify,
            registers: Mutex::new(Registers::new(sizes)),
            deadline: Deadline::new,
            longest_hold: LongestHold::new(),
            most_work: AtomicU64::new(0),
        })
    }

    /// Gives each round of processing a deadline of `make`'s; [`Deadline::new`] unless told
    /// otherwise. Tests bound rounds by work with it.
    #[must_use]
    pub fn with_deadline(self, make: fn() -> Deadline) -> Self {
        Self { deadline: make, ..self }
    }

    /// The longest time that this transport held its device's lock, for metrics.
    pub fn longest_hold(&self) -> &LongestHold {
        &self.longest_hold
    }

    /// The most work that one round of processing did, in units of [`Deadline`].
    pub fn most_work(&self) -> u64 {
        self.most_work.load(Ordering::Relaxed)
    }

    /// Locks the device, and records how long it is held.
    fn lock(&self) -> Locked<'_> {
        let device = lock(&self.device);
        Locked { _hold: self.longest_hold.start(), device }
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
        progress
    }

    /// Has the event loop come back to queue `queue`.
    fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // Fails only when the counter is full: then the loop is awake already.
            let _ = kick.write(1);
        }
    }

    /// Processes queue `queue` in the vCPU that notified it: once, or until it is empty if the device
    /// wants that, but not for as long as other vCPUs keep filling it.
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

    /// Notifications to register as ioeventfds. The others, and those never registered, come
    /// through [`write`](Self::write).
    pub fn notifiers(&self) -> impl Iterator<Item = Notifier<'_>> {
        let queues = (0..).zip(&self.kicks).zip(&self.at_notify);
        queues.filter(|(_, at_notify)| !**at_notify).map(|((value, event), _)| Notifier {
            offset: register::QUEUE_NOTIFY,
            value,
            event,
        })
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
            }
            return;
        }
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device_type,
            register::VENDOR_ID => VENDOR,
            register::INTERRUPT_STATUS => self.interrupt.pending(),
            register::STATUS => self.interrupt.status(),
            register::CONFIG_GENERATION => self.interrupt.generation(),
            register::DEVICE_FEATURES => match self.registers().device_features_sel {
                0 => low(self.features),
                1 => high(self.features),
                _ => 0,
            },
            register::QUEUE_NUM_MAX => {
                self.registers().selected().map_or(0, |queue| u32::from(queue.max_size))
            }
            register::QUEUE_READY => {
                self.registers().selected().map_or(0, |queue| u32::from(queue.ready()))
            }
            register::SHM_LEN_LOW => low(self.shared_region().1),
            register::SHM_LEN_HIGH => high(self.shared_region().1),
            register::SHM_BASE_LOW => low(self.shared_region().0),
            register::SHM_BASE_HIGH => high(self.shared_region().0),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.write_status(value),
            register::DEVICE_FEATURES_SEL => self.registers().device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.registers().driver_features_sel = value,
            register::DRIVER_FEATURES => self.write_features(value),
            register::QUEUE_SEL => self.registers().queue_sel = value,
            register::SHM_SEL => self.registers().shm_sel = value,
            register::QUEUE_READY => self.write_queue_ready(value),
            register::QUEUE_NUM => self.set_up_queue(|queue| queue.size = value),
            register::QUEUE_DESC_LOW => self.set_address(Ring::Descriptors, false, value),
            register::QUEUE_DESC_HIGH => self.set_address(Ring::Descriptors, true, value),
            register::QUEUE_DRIVER_LOW => self.set_address(Ring::Available, false, value),
            register::QUEUE_DRIVER_HIGH => self.set_address(Ring::Available, true, value),
            register::QUEUE_DEVICE_LOW => self.set_address(Ring::Used, false, value),
            register::QUEUE_DEVICE_HIGH => self.set_address(Ring::Used, true, value),
            _ => {}
        }
    }

    /// Address and length of the selected region; all ones where there is none
    /// (virtio 1.3, 4.2.2, SHMLenLow).
    fn shared_region(&self) -> (u64, u64) {
        let id = u8::try_from(self.registers().shm_sel).ok();
        let region = id.and_then(|id| self.lock().shared_region(id));
        region.map_or((u64::MAX, u64::MAX), |region| (region.addr.0, region.len))
    }

    fn notify(&self, queue: u32) {
        let Ok(queue) = u16::try_from(queue) else { return };
        if self.at_notify.get(usize::from(queue)) == Some(&true) {
            let device = self.lock();
            let (here, finish) = (device.runs_at_notify(queue), device.finishes_at_notify(queue));
            drop(device);
            // What a deadline has cut is the event loop's: a guest that notifies again and
            // again would keep the device from other threads.
            let cut = self.resumed[usize::from(queue)].load(Ordering::Relaxed);
            if here && (finish || !cut) {
                return self.process_at_notify(queue, finish);
            }
        }
        self.kick(queue);
    }

    fn write_features(&self, value: u32) {
        let mut registers = self.registers();
        let step = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        if self.interrupt.status() & step != VIRTIO_CONFIG_S_DRIVER {
            return note("features written outside their negotiation");
        }
        let value = u64::from(value);
        match registers.driver_features_sel {
            0 => registers.driver_features = registers.driver_features & !0xffff_ffff | value,
            1 => registers.driver_features = registers.driver_features & 0xffff_ffff | value << 32,
            _ => registers.unknown_features |= value != 0,
        }
    }

    /// Changes the selected queue, which a driver may between FEATURES_OK and DRIVER_OK while the
    /// queue is not ready (virtio 1.3, 3.1.1 and 4.2.2.2).
    fn set_up_queue(&self, change: impl FnOnce(&mut QueueSetup)) {
        let mut registers = self.registers();
        if !self.setting_up() {
            return note("queue written outside its setup");
        }
        match registers.selected() {
            Some(queue) if !queue.ready() => change(queue),
            _ => note("register of a queue that is ready or not there"),
        }
    }

    fn set_address(&self, ring: Ring, high: bool, value: u32) {
        self.set_up_queue(|queue| queue.set_address(ring, high, value));
    }

    fn write_queue_ready(&self, value: u32) {
        if value == 0 {
            let mut registers = self.registers();
            if let Some(queue) = registers.selected() {
                // Under the device's lock: once this returns, no round is under way on the queue
                // (virtio 1.3, 4.2.2.1).
                let _device = self.lock();
                queue.stop();
            }
            return;
        }
        let mut fault = None;
        self.set_up_queue(|queue| fault = queue.enable(&self.mem).err());
        if let Some(fault) = fault {
            let queue = self.registers().queue_sel;
            tracing::warn!(queue, "queue refused: {fault}");
        }
    }

    fn setting_up(&self) -> bool {
        let step = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        self.interrupt.status() & step == VIRTIO_CONFIG_S_FEATURES_OK
    }

    fn write_status(&self, value: u32) {
        let mut registers = self.registers();
        if value == 0 {
            return self.reset(&mut registers);
        }
        let before = self.interrupt.status();
        // The driver hands back what it read: NEEDS_RESET is not its to set or clear.
        let value = (value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET) | before;
        if value & VIRTIO_CONFIG_S_FAILED & !before != 0 {
            self.interrupt.add_status(VIRTIO_CONFIG_S_FAILED);
            note("the driver gave its device up");
        }
        for (bit, needed) in STEPS {
            if value & bit == 0 || self.interrupt.status() & bit != 0 {
                continue;
            }
            if self.interrupt.status() & needed != needed {
                return note("status written out of order");
            }
            match bit {
                VIRTIO_CONFIG_S_FEATURES_OK if !self.features_agree(&registers) => {
                    return note("features not offered, or VERSION_1 missing");
                }
                VIRTIO_CONFIG_S_DRIVER_OK => self.activate(&mut registers),
                _ => self.interrupt.add_status(bit),
            }
        }
    }

    fn features_agree(&self, registers: &Registers) -> bool {
        let accepted = registers.driver_features;
        !registers.unknown_features
            && accepted & !self.features == 0
            && accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&self, registers: &mut Registers) {
        let mut device = self.lock();
        // Before the device can interrupt: a driver that is told something must be up.
        self.interrupt.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        let activation = self.activation(registers);
        let result = match activation {
            Ok(activation) => device.activate(activation),
            Err(error) => return self.fail(&error),
        };
        if let Err(failure) = result {
            return self.fail(&failure);
        }
        drop(device);
        // Drivers may fill queues and notify before DRIVER_OK, when the device is not active yet:
        // Linux's balloon does so with its statistics buffer.
        for kick in &self.kicks {
            // Fails only when the counter is full: then the loop is awake already.
            let _ = kick.write(1);
        }
    }

    fn activation(&self, registers: &mut Registers) -> io::Result<Activation> {
        let features = registers.driver_features;
        let mut queues = Vec::with_capacity(self.kicks.len());
        for ((index, setup), kick) in (0..).zip(&mut registers.queues).zip(&self.kicks) {
            let mut queue = setup.start(&self.mem);
            queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            queues.push(DeviceQueue::new(
                index,
                queue,
                Arc::clone(&self.mem),
                self.interrupt.clone(),
                kick.try_clone()?,
                Arc::clone(&setup.running),
            ));
        }
        Ok(Activation {
            mem: Arc::clone(&self.mem),
            features,
            interrupt: self.interrupt.clone(),
            queues,
        })
    }

    fn reset(&self, registers: &mut Registers) {
        let mut device = self.lock();
        for queue in &mut registers.queues {
            queue.stop();
        }
        device.reset();
        self.interrupt.reset();
        self.resumed.iter().for_each(|resumed| resumed.store(false, Ordering::Relaxed));
        drop(device);
        // On the thread of the vCPU that waits for its reset: others wait for a round at most.
        while self.lock().clean_up(&mut (self.deadline)()) == Progress::More {
            thread::sleep(GAP);
        }
        let sizes: Vec<u16> = registers.queues.iter().map(|queue| queue.max_size).collect();
        *registers = Registers::new(sizes);
    }

    /// The device cannot go on; called with its lock held, so that a reset comes wholly before or
    /// wholly after.
    fn fail(&self, cause: &dyn std::fmt::Display) {
        tracing::warn!(device_type = self.device_type, "device needs a reset: {cause}");
        if let Err(error) = self.interrupt.signal_needs_reset() {
            tracing::warn!(%error, "cannot interrupt the driver");
        }
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueHost for MmioTransport {
    fn queue_events(&self) -> &[EventFd] {
        &self.kicks
    }

    fn process_queue(&self, queue: u16) {
        if self.round(queue, &mut (self.deadline)()) == Progress::More {
            self.kick(queue);
        }
    }
}

/// The device's lock, held, and the record of how long.
struct Locked<'a> {
    // First, so that it ends before the lock is free.
    _hold: Hold<'a>,
    device: MutexGuard<'a, dyn VirtioDevice + 'static>,
}

impl Deref for Locked<'_> {
    type Target = dyn VirtioDevice;

    fn deref(&self) -> &Self::Target {
        &*self.device
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.device
    }
}

fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what a driver does that the standard does not allow. The log limits how often.
fn note(what: &str) {
    tracing::warn!("virtio-mmio: {what}: ignored");
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
