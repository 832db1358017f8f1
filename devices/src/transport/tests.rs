// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-mmio against a device that records its calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MmioTransport, register as reg};
use crate::transport::mock::{Descriptor, MockDriver};
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

    /// Lets the device look at its queues, as it does once after DRIVER_OK, and forgets that.
    fn first_look(&mut self) {
        self.driver.run();
        self.device.lock().processed.clear();
    }

    fn status(&self) -> u32 {
        self.driver.read(reg::STATUS)
    }

    /// Writes a status and returns what becomes of it.
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

#[test]
fn the_device_says_what_it_is() {
    let rig = Rig::new();
    assert_eq!(rig.driver.read(reg::MAGIC).to_le_bytes(), *b"virt");
    assert_eq!(rig.driver.read(reg::VERSION), 2);
    assert_eq!(rig.driver.read(reg::DEVICE_ID), 42);
    assert_eq!(rig.driver.offered(), VERSION_1 | EVENT_IDX | FANCY);
    rig.driver.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(rig.driver.read(reg::DEVICE_FEATURES), 0);
    for (queue, max) in [(0, 8), (1, 16), (2, 0), (u32::MAX, 0)] {
        rig.driver.write(reg::QUEUE_SEL, queue);
        assert_eq!(rig.driver.read(reg::QUEUE_NUM_MAX), max);
        assert_eq!(rig.driver.read(reg::QUEUE_READY), 0);
    }
}

#[test]
fn status_is_climbed_step_by_step() {
    let rig = Rig::new();
    // No step may be left out.
    assert_eq!(rig.set_status(DRIVER), 0);
    assert_eq!(rig.set_status(ACKNOWLEDGE | FEATURES_OK), ACKNOWLEDGE);
    assert_eq!(rig.set_status(ACKNOWLEDGE | DRIVER), ACKNOWLEDGE | DRIVER);
    assert_eq!(rig.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK), ACKNOWLEDGE | DRIVER);
    // No bit can be taken away, and NEEDS_RESET is not the driver's.
    assert_eq!(rig.set_status(ACKNOWLEDGE), ACKNOWLEDGE | DRIVER);
    assert_eq!(rig.set_status(NEEDS_RESET | DRIVER), ACKNOWLEDGE | DRIVER);
    rig.set_features(VERSION_1 | FANCY);
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    assert_eq!(rig.set_status(ready), ready);
    // Features are settled.
    rig.set_features(VERSION_1);
    assert_eq!(rig.set_status(ready | DRIVER_OK), ready | DRIVER_OK);
    assert_eq!(rig.device.lock().features, Some(VERSION_1 | FANCY));
    assert_eq!(rig.set_status(ready | DRIVER_OK | FAILED), ready | DRIVER_OK | FAILED);
    assert_eq!(rig.set_status(0), 0);
    assert_eq!(rig.device.lock().resets, 1);
}

#[test]
fn features_that_were_not_offered_or_too_few_are_refused() {
    for features in [VERSION_1 | 1 << 40, VERSION_1 | 1, FANCY, 0] {
        let rig = Rig::new();
        rig.set_status(ACKNOWLEDGE | DRIVER);
        rig.set_features(features);
        assert_eq!(rig.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK), ACKNOWLEDGE | DRIVER);
    }
    let rig = Rig::new();
    rig.set_status(ACKNOWLEDGE | DRIVER);
    rig.set_features(VERSION_1);
    rig.driver.write(reg::DRIVER_FEATURES_SEL, 7);
    rig.driver.write(reg::DRIVER_FEATURES, 1);
    assert_eq!(rig.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK), ACKNOWLEDGE | DRIVER);
}

#[test]
fn queues_reach_the_device_as_they_were_set_up() {
    let mut rig = Rig::new();
    rig.driver.negotiate(VERSION_1);
    rig.driver.set_up_queue(1);
    rig.driver.start();
    let device = rig.device.lock();
    assert_eq!(device.queues.len(), 2);
    assert!(!device.queues[0].ready());
    assert!(device.queues[1].ready());
    assert_eq!((device.queues[1].index(), device.queues[1].size()), (1, 16));
}

#[test]
fn bad_queues_are_never_ready() {
    let good =
        [(reg::QUEUE_NUM, 8), (reg::QUEUE_DESC_LOW, 0x1000), (reg::QUEUE_DRIVER_LOW, 0x2000)];
    let good = good.into_iter().chain([(reg::QUEUE_DEVICE_LOW, 0x3000)]);
    for (register, value) in [
        (reg::QUEUE_NUM, 0),
        (reg::QUEUE_NUM, 3),
        (reg::QUEUE_NUM, 16),
        (reg::QUEUE_NUM, 0x1_0008),
        (reg::QUEUE_NUM, u32::MAX),
        (reg::QUEUE_DESC_LOW, 0x1008),
        (reg::QUEUE_DESC_LOW, 0),
        (reg::QUEUE_DESC_LOW, (1 << 20) - 112),
        (reg::QUEUE_DESC_HIGH, 1),
        (reg::QUEUE_DRIVER_LOW, 0x2001),
        (reg::QUEUE_DRIVER_LOW, 0),
        (reg::QUEUE_DRIVER_LOW, (1 << 20) - 20),
        (reg::QUEUE_DRIVER_HIGH, u32::MAX),
        (reg::QUEUE_DEVICE_LOW, 0x3002),
        (reg::QUEUE_DEVICE_LOW, (1 << 20) - 64),
        (reg::QUEUE_DEVICE_HIGH, 0x8000_0000),
    ] {
        let mut rig = Rig::new();
        rig.driver.negotiate(VERSION_1);
        for (register, value) in good.clone().chain([(register, value)]) {
            rig.driver.write(register, value);
        }
        rig.driver.write(reg::QUEUE_READY, 1);
        assert_eq!(rig.driver.read(reg::QUEUE_READY), 0, "{register:#x} {value:#x}");
        // The driver may try again.
        let fix = good.clone().find(|(other, _)| *other == register);
        rig.driver.write(register, fix.map_or(0, |(_, value)| value));
        rig.driver.write(reg::QUEUE_READY, 1);
        assert_eq!(rig.driver.read(reg::QUEUE_READY), 1, "{register:#x} {value:#x}");
    }
}

#[test]
fn queues_cannot_be_set_up_out_of_turn() {
    let mut rig = Rig::new();
    rig.driver.write(reg::QUEUE_DESC_LOW, 0x1000);
    rig.driver.write(reg::QUEUE_READY, 1);
    assert_eq!(rig.driver.read(reg::QUEUE_READY), 0);
    rig.driver.probe(VERSION_1, 1);
    // Queue 0 is live; queue 1 is too late.
    for queue in [0, 1] {
        rig.driver.write(reg::QUEUE_SEL, queue);
        rig.driver.write(reg::QUEUE_DESC_LOW, 0x8000);
        rig.driver.write(reg::QUEUE_NUM, 2);
    }
    rig.driver.write(reg::QUEUE_READY, 1);
    assert_eq!(rig.driver.read(reg::QUEUE_READY), 0);
    assert_eq!(rig.device.lock().queues[0].size(), 8);
}

#[test]
fn a_stopped_queue_is_empty_for_its_device_and_a_reset_does_not_revive_it() {
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1, 2);
    rig.driver.add(0, &[Descriptor::readable(GuestAddress(0x100), 4)]);
    let mut kept = rig.device.lock().queues.remove(0);
    rig.driver.write(reg::QUEUE_SEL, 0);
    rig.driver.write(reg::QUEUE_READY, 0);
    assert!(!kept.ready());
    assert!(kept.pop().unwrap().is_none());
    rig.driver.probe(VERSION_1, 2);
    assert!(!kept.ready(), "a queue from before the reset");
    assert!(rig.device.lock().queues[0].ready());
}

#[test]
fn a_failed_device_does_nothing_until_reset() {
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1, 2);
    rig.first_look();
    rig.device.lock().fail = true;
    rig.driver.interrupts();
    rig.driver.notify(1);
    rig.driver.run();
    assert!(rig.driver.needs_reset());
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(rig.driver.interrupts(), 1);
    rig.driver.notify(1);
    rig.driver.run();
    assert_eq!(rig.device.lock().processed, [1]);
    rig.device.lock().fail = false;
    rig.driver.probe(VERSION_1, 2);
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 0);
    rig.first_look();
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(rig.device.lock().processed, [0]);
}

#[test]
fn an_activation_may_be_refused() {
    let mut rig = Rig::over(Recorder { refuse: true, ..Recorder::default() });
    rig.driver.negotiate(VERSION_1);
    rig.driver.start();
    assert!(rig.driver.needs_reset());
}

#[test]
fn interrupts_stay_until_acknowledged() {
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1, 2);
    let interrupt = rig.device.lock().interrupt.clone().unwrap();
    let generation = rig.driver.read(reg::CONFIG_GENERATION);
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 1);
    assert_eq!(rig.driver.read(reg::CONFIG_GENERATION), generation);
    interrupt.signal_config_change().unwrap();
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 3);
    assert_ne!(rig.driver.read(reg::CONFIG_GENERATION), generation);
    rig.driver.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 2);
    rig.driver.write(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(rig.driver.interrupts(), 2);
}

/// An interrupt handler must not wait for a device that is busy.
#[test]
fn interrupt_registers_need_no_lock() {
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1, 2);
    let _busy = rig.device.lock();
    rig.driver.read(reg::INTERRUPT_STATUS);
    rig.driver.write(reg::INTERRUPT_ACK, 3);
    rig.driver.read(reg::STATUS);
    rig.driver.read(reg::CONFIG_GENERATION);
    rig.driver.notify(0);
}

#[test]
fn notifications_wake_the_event_loop_or_run_in_the_vcpu() {
    let mut rig = Rig::over(Recorder { at_notify: Some(1), ..Recorder::default() });
    let registered: Vec<u32> = rig.driver.transport().notifiers().map(|n| n.value).collect();
    assert_eq!(registered, [0]);
    rig.driver.probe(VERSION_1, 2);
    rig.first_look();
    rig.driver.notify(1);
    assert_eq!(rig.device.lock().processed, [1]);
    rig.driver.notify(0);
    assert_eq!(rig.device.lock().processed, [1]);
    rig.driver.run();
    assert_eq!(rig.device.lock().processed, [1, 0]);
}

#[test]
fn shared_regions_are_shown_or_not_there() {
    let rig = Rig::new();
    let region = |id| {
        rig.driver.write(reg::SHM_SEL, id);
        let long =
            |low| u64::from(rig.driver.read(low)) | u64::from(rig.driver.read(low + 4)) << 32;
        (long(reg::SHM_BASE_LOW), long(reg::SHM_LEN_LOW))
    };
    assert_eq!(region(3), (0x12_3456_7000, 0x5_0000_0000));
    assert_eq!(region(0), (u64::MAX, u64::MAX));
    assert_eq!(region(259), (u64::MAX, u64::MAX), "not region 3");
}

#[test]
fn registers_are_words_and_configuration_is_bytes() {
    let mut rig = Rig::new();
    let transport = Arc::clone(rig.driver.transport());
    for len in [1, 2, 3, 8] {
        let mut data = vec![0xff; len];
        transport.read(reg::MAGIC, &mut data);
        assert_eq!(data, vec![0; len]);
    }
    transport.write(reg::STATUS, &[ACKNOWLEDGE as u8]);
    assert_eq!(rig.status(), 0);
    // Not before the driver has found its device.
    transport.write(reg::CONFIG, &[9]);
    rig.driver.negotiate(VERSION_1);
    transport.write(reg::CONFIG + 1, &[1, 2, 3]);
    transport.write(reg::CONFIG + 7, &[7, 7]);
    let mut data = [0xff; 12];
    transport.read(reg::CONFIG, &mut data);
    assert_eq!(data, [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Register(u64, u32),
    Process(u16),
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0u64..0x120, 0u64..0x1000, any::<u64>()];
    let register = (0u64..0x48).prop_map(|word| word * 4);
    let value = prop_oneof![0u32..32, any::<u32>(), Just(0x1000), Just(0x1_0000)];
    prop_oneof![
        1 => (offset.clone(), 0usize..9).prop_map(|(at, len)| Access::Read(at, len)),
        1 => (offset, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, data)| Access::Write(at, data)),
        4 => (register, value.clone()).prop_map(|(at, value)| Access::Register(at, value)),
        2 => (Just(reg::STATUS), prop::sample::select(vec![0u32, 1, 3, 11, 15, 128]))
            .prop_map(|(at, value)| Access::Register(at, value)),
        1 => (0u16..4).prop_map(Access::Process),
    ]
}

proptest! {
    /// For any sequence of writes: no panic, no status without its steps, no processing but between
    /// DRIVER_OK and reset.
    #[test]
    fn any_access_leaves_the_machine_sound(accesses in prop::collection::vec(access(), 0..200)) {
        let device = Arc::new(DeviceLock::new(Recorder::default()));
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(memory(), device.clone(), irq).unwrap();
        let status = || {
            let mut word = [0; 4];
            transport.read(reg::STATUS, &mut word);
            u32::from_le_bytes(word)
        };
        for access in accesses {
            let processed = device.lock().processed.len();
            match access {
                Access::Read(at, len) => transport.read(at, &mut vec![0; len]),
                Access::Write(at, data) => transport.write(at, &data),
                Access::Register(at, value) => transport.write(at, &value.to_le_bytes()),
                Access::Process(queue) => {
                    transport.process_queue(queue);
                    let ran = device.lock().processed.len() > processed;
                    prop_assert_eq!(ran, status() & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK);
                }
            }
            let status = status();
            for (bit, needs) in
                [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
            {
                prop_assert!(status & bit == 0 || status & needs != 0, "status {:#x}", status);
            }
            let active = device.lock().features;
            prop_assert_eq!(active.is_some(), status & DRIVER_OK != 0);
            if let Some(features) = active {
                prop_assert_eq!(features & !(VERSION_1 | EVENT_IDX | FANCY), 0);
                prop_assert!(features & VERSION_1 != 0);
            }
        }
    }

    /// A chain of any shape is walked to its end and no further, also one whose buffers are the rings
    /// themselves: what is then read from them may be refused, and is nothing worse.
    #[test]
    fn any_descriptor_table_is_survived(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..16, 1..16),
    ) {
        use crate::virtio::Segments;
        let mut rig = Rig::new();
        rig.driver.probe(VERSION_1, 2);
        for (number, (addr, len, flags, next)) in (0..).zip(table) {
            // Mostly inside RAM, so that some chains are good.
            let addr = if addr % 4 == 0 { addr } else { addr % (1 << 20) };
            rig.driver.write_descriptor(1, number, Descriptor { addr, len: len % 5000, flags, next });
        }
        heads.iter().for_each(|head| rig.driver.make_available(1, *head));
        let mut device = rig.device.lock();
        let queue = &mut device.queues[1];
        let mut written = false;
        for _ in 0..queue.size() {
            let chain = match queue.pop() {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                // Only the test's own writing can have spoilt a ring.
                Err(err) => {
                    prop_assert!(written, "{err}");
                    break;
                }
            };
            let mem = Arc::clone(queue.mem());
            if let Ok(segments) = Segments::collect(chain, queue.size()) {
                prop_assert!(segments.readable.len() + segments.writable.len() <= 16);
                let mut data = vec![0; 100];
                let got = segments.read(&mem, 3, &mut data) as u64;
                prop_assert_eq!(got, segments.readable_len().saturating_sub(3).min(100));
                let put = segments.write(&mem, 3, &data) as u64;
                prop_assert_eq!(put, segments.writable_len().saturating_sub(3).min(100));
                written |= put > 0;
            }
        }
    }
}

/// The event loop's side: what is notified is processed, once.
#[test]
fn the_runner_processes_what_was_notified() {
    use crate::virtio::Runner;
    use event_manager::{EventManager, SubscriberOps};

    struct Host(Vec<EventFd>, Mutex<Vec<u16>>, AtomicBool);
    impl QueueHost for Host {
        fn queue_events(&self) -> &[EventFd] {
            &self.0
        }
        fn process_queue(&self, queue: u16) {
            self.1.lock().unwrap().push(queue);
            // Something more comes during the first round.
            if !self.2.swap(true, Ordering::Relaxed) {
                self.0[2].write(1).unwrap();
            }
        }
    }
    let events = (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    let host = Arc::new(Host(events, Mutex::default(), AtomicBool::new(false)));
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Runner::new(host.clone()));
    host.0[1].write(5).unwrap();
    while manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(*host.1.lock().unwrap(), [1, 2]);
}

#[test]
fn a_queue_with_more_to_do_is_processed_again_after_the_others() {
    for at_notify in [None, Some(0)] {
        let device = Recorder { at_notify, ..Recorder::default() };
        let mut rig = Rig::over(device);
        rig.driver.probe(VERSION_1, 2);
        rig.first_look();
        rig.device.lock().rounds_left = 2;
        rig.driver.notify(0);
        rig.driver.notify(1);
        rig.driver.run();
        let processed = rig.device.lock().processed.clone();
        assert_eq!(processed.iter().filter(|queue| **queue == 0).count(), 3, "{processed:?}");
        let other = processed.iter().position(|queue| *queue == 1).unwrap();
        // One round at the notification, one in the same turn of the loop.
        assert!(other <= 2, "{processed:?}: queue 1 waits for queue 0");
        assert_eq!(rig.driver.transport().most_work(), 100);
    }
}

#[test]
fn a_reset_ends_what_was_to_be_resumed() {
    let mut rig = Rig::over(Recorder { at_notify: Some(0), ..Recorder::default() });
    rig.driver.probe(VERSION_1, 2);
    rig.first_look();
    rig.device.lock().rounds_left = usize::MAX;
    rig.driver.notify(0);
    rig.driver.reset();
    rig.first_look();
    rig.driver.run();
    assert!(rig.device.lock().processed.is_empty());
}
