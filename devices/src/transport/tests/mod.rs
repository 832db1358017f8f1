// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-mmio against a device that records its calls.
//!
//! - `registers.rs`: what a driver reads and writes, and when it may
//! - `hostile.rs`: any access, any descriptor table
//! - `page.rs`: registers that the guest reads without an exit
//! - `rounds.rs`: the event loop's side, queues with more to do

mod hostile;
mod page;
mod registers;
mod rounds;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MmioTransport, register as reg};
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{
    Activation, Deadline, DeviceFailure, DeviceLock, DeviceQueue, GuestMemoryMmap, Interrupt,
    Progress, QueueHost, SharedRegion, VirtioDevice, read_config_slice, write_config_slice,
};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const FANCY: u64 = 1 << 3;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// What happened to a device.
#[derive(Default)]
struct Recorder {
    config: [u8; 8],
    features: Option<u64>,
    queues: Vec<DeviceQueue>,
    interrupt: Option<Arc<dyn Interrupt>>,
    processed: Vec<u16>,
    resets: usize,
    refuse: bool,
    fail: bool,
    at_notify: Option<u16>,
    publishes: bool,
    offloaded: Option<u16>,
    stopped: Vec<u16>,
    /// Rounds of queue 0 that end with more to do.
    rounds_left: usize,
}

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | FANCY
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn shared_region(&self, id: u8) -> Option<SharedRegion> {
        let addr = GuestAddress(0x12_3456_7000);
        (id == 3).then_some(SharedRegion { addr, len: 0x5_0000_0000 })
    }
    fn runs_at_notify(&self, queue: u16) -> bool {
        self.at_notify == Some(queue)
    }
    fn publishes_config(&self) -> bool {
        self.publishes
    }
    fn is_offloaded(&self, queue: u16) -> bool {
        self.offloaded == Some(queue)
    }
    fn stop_queue(&mut self, queue: u16) {
        self.stopped.push(queue);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_slice(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        write_config_slice(&mut self.config, offset, data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        if self.refuse {
            return Err(DeviceFailure::new("recorder", "told to refuse"));
        }
        self.features = Some(activation.features);
        self.queues = activation.queues;
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }
    fn reset(&mut self) {
        self.resets += 1;
        self.features = None;
        self.queues.clear();
    }
    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        self.processed.push(queue);
        if self.fail {
            return Err(DeviceFailure::new("recorder", "told to fail"));
        }
        deadline.charge(100);
        let more = queue == 0 && self.rounds_left > 0;
        self.rounds_left -= usize::from(more);
        Ok(Progress::more_if(more))
    }
}

struct Rig {
    driver: MockDriver,
    device: Arc<DeviceLock<Recorder>>,
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

impl Rig {
    fn new() -> Self {
        Self::over(Recorder::default())
    }

    fn over(device: Recorder) -> Self {
        let device = Arc::new(DeviceLock::new(device));
        let driver = MockDriver::new(memory(), device.clone(), 0x1_0000..0x2_0000);
        Self { driver, device }
    }

    /// Runs the device's first look at its queues after DRIVER_OK, and resets the record.
    fn first_look(&mut self) {
        self.driver.run();
        self.device.lock().processed.clear();
    }

    fn status(&self) -> u32 {
        self.driver.read(reg::STATUS)
    }

    /// Writes a status and reads it back.
    fn set_status(&self, status: u32) -> u32 {
        self.driver.write(reg::STATUS, status);
        self.status()
    }

    fn set_features(&self, features: u64) {
        self.driver.write(reg::DRIVER_FEATURES_SEL, 1);
        self.driver.write(reg::DRIVER_FEATURES, (features >> 32) as u32);
        self.driver.write(reg::DRIVER_FEATURES_SEL, 0);
        self.driver.write(reg::DRIVER_FEATURES, features as u32);
    }
}
