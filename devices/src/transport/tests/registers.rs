// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers, as a driver uses them.

use super::*;

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
    // No bit can be cleared, and the driver cannot set NEEDS_RESET.
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
    rig.driver.add(0, &[MockDescriptor::readable(GuestAddress(0x100), 4)]);
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

/// The hypervisor keeps an acknowledgement of used buffers alone: what else happens is still seen.
#[test]
fn acknowledgements_may_stay_with_the_hypervisor() {
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1, 2);
    let interrupt = rig.device.lock().interrupt.clone().unwrap();
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!((rig.driver.interrupts(), rig.driver.read(reg::INTERRUPT_STATUS)), (1, 1));
    // Acknowledged, and used buffers again: an interrupt each, though the bit was never clear.
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!((rig.driver.interrupts(), rig.driver.read(reg::INTERRUPT_STATUS)), (1, 1));
    interrupt.signal_config_change().unwrap();
    assert_eq!((rig.driver.interrupts(), rig.driver.acknowledge()), (1, 3));
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 0, "acknowledged with the other one");
}

#[test]
fn notifications_wake_the_event_loop_or_run_in_the_vcpu() {
    let mut rig = Rig::over(Recorder { at_notify: Some(1), ..Recorder::default() });
    let registered: Vec<_> =
        rig.driver.transport().notifiers().map(|n| (n.offset, n.value)).collect();
    assert_eq!(registered, [(reg::QUEUE_NOTIFY, 0), (reg::INTERRUPT_ACK, 1)]);
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
