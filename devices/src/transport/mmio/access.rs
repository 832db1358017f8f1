// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and writes of each register except the status.

use std::sync::atomic::Ordering;

use mm::units::SaturatingInto;
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK};

use super::{MmioTransport, note, register};
use crate::transport::register_page::RegisterPage;
use crate::transport::setup::{QueueSetup, RingAddress};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "BLST", little-endian.
const VENDOR: u32 = u32::from_le_bytes(*b"BLST");

/// Readable registers that change with what the driver writes, or never.
const COPIED: [u64; 11] = [
    register::MAGIC,
    register::VERSION,
    register::DEVICE_ID,
    register::VENDOR_ID,
    register::DEVICE_FEATURES,
    register::QUEUE_NUM_MAX,
    register::QUEUE_READY,
    register::SHM_LEN_LOW,
    register::SHM_LEN_HIGH,
    register::SHM_BASE_LOW,
    register::SHM_BASE_HIGH,
];

impl MmioTransport {
    /// Copies registers and configuration space to the page that the guest may read.
    pub(super) fn fill_page(&self) {
        let Some(page) = self.page() else { return };
        for offset in COPIED {
            let value = self.read_register(offset);
            page.word(offset).store(value, Ordering::Release);
        }
        let mut config = RegisterPage::config_room();
        // With the lock held: what the device publishes later must not be overwritten.
        let device = self.lock();
        device.read_config(0, &mut config);
        page.set_config(&config);
    }

    pub(super) fn read_register(&self, offset: u64) -> u32 {
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

    pub(super) fn write_register(&self, offset: u64, value: u32) {
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
            register::QUEUE_DESC_LOW => self.set_address(RingAddress::Descriptors, false, value),
            register::QUEUE_DESC_HIGH => self.set_address(RingAddress::Descriptors, true, value),
            register::QUEUE_DRIVER_LOW => self.set_address(RingAddress::Available, false, value),
            register::QUEUE_DRIVER_HIGH => self.set_address(RingAddress::Available, true, value),
            register::QUEUE_DEVICE_LOW => self.set_address(RingAddress::Used, false, value),
            register::QUEUE_DEVICE_HIGH => self.set_address(RingAddress::Used, true, value),
            _ => {}
        }
    }

    /// Address and length of the selected region; all ones if it does not exist
    /// (virtio 1.3, 4.2.2, SHMLenLow).
    fn shared_region(&self) -> (u64, u64) {
        let id = u8::try_from(self.registers().shm_sel).ok();
        let region = id.and_then(|id| self.lock().shared_region(id));
        region.map_or((u64::MAX, u64::MAX), |region| (region.addr.0, region.len))
    }

    fn write_features(&self, value: u32) {
        let mut registers = self.registers();
        let step = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        if self.interrupt.status() & step != VIRTIO_CONFIG_S_DRIVER {
            return note("features written outside negotiation");
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
            return note("queue register written outside queue setup");
        }
        match registers.selected() {
            Some(queue) if !queue.ready() => change(queue),
            _ => note("write to a register of a queue that is ready or does not exist"),
        }
    }

    fn set_address(&self, ring: RingAddress, high: bool, value: u32) {
        self.set_up_queue(|queue| queue.set_address(ring, high, value));
    }

    fn write_queue_ready(&self, value: u32) {
        if value == 0 {
            let mut registers = self.registers();
            let number = registers.queue_sel;
            if let Some(queue) = registers.selected() {
                // Under the device's lock: once this returns, no round is running on the queue
                // (virtio 1.3, 4.2.2.1).
                let mut device = self.lock();
                queue.stop();
                device.stop_queue(number.saturating_u16());
                let remains = device.take_remains();
                drop(device);
                drop(remains);
            }
            return;
        }
        let mut fault = None;
        self.set_up_queue(|queue| fault = queue.enable(&self.mem).err());
        if let Some(fault) = fault {
            let queue = self.registers().queue_sel;
            tracing::warn!(queue, "queue rejected: {fault}");
        }
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
