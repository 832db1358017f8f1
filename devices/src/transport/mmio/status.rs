// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The status state machine: the driver's steps, and resets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::{GAP, HOST_GAP, MmioTransport, Registers, note};
use crate::virtio::{Activation, DeviceQueue, Interrupt, Progress};

/// The steps of the status machine, each with the bits that must be there before.
const STEPS: [(u32, u32); 4] = [
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
    (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
    (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
];

impl MmioTransport {
    pub(super) fn setting_up(&self) -> bool {
        let step = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        self.interrupt.status() & step == VIRTIO_CONFIG_S_FEATURES_OK
    }

    pub(super) fn write_status(&self, value: u32) {
        let mut registers = self.registers();
        if value == 0 {
            return self.reset(&mut registers);
        }
        let before = self.interrupt.status();
        // The driver writes back what it read: it cannot set or clear NEEDS_RESET.
        let value = (value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET) | before;
        if value & VIRTIO_CONFIG_S_FAILED & !before != 0 {
            self.interrupt.add_status(VIRTIO_CONFIG_S_FAILED);
            note("the driver set FAILED");
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
        // Before the device can interrupt: a driver must be up before its first interrupt.
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
        let remains = device.take_remains();
        drop(device);
        drop(remains);
        // Runs on the vCPU that waits for its reset: others wait for at most one round.
        loop {
            let mut deadline = (self.deadline)();
            let mut device = self.lock();
            let progress = device.clean_up(&mut deadline);
            let remains = device.take_remains();
            drop(device);
            drop(remains);
            if progress == Progress::Done {
                break;
            }
            // A round without work waits for the host.
            thread::sleep(if deadline.spent() == 0 { HOST_GAP } else { GAP });
        }
        let sizes: Vec<u16> = registers.queues.iter().map(|queue| queue.max_size).collect();
        *registers = Registers::new(sizes);
    }

    /// The device cannot continue; called with its lock held, so that a reset comes entirely before
    /// or after it.
    pub(super) fn fail(&self, cause: &dyn std::fmt::Display) {
        tracing::warn!(device_type = self.device_type, "device needs a reset: {cause}");
        if let Err(error) = self.interrupt.signal_needs_reset() {
            tracing::warn!(%error, "cannot interrupt the driver");
        }
    }
}
