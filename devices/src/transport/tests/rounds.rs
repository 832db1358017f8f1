// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event loop's side.

use super::*;

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

/// The buffers of one packet are the driver's all at once (virtio 1.3, 5.1.6.4): it looks while the
/// device works.
#[test]
fn buffers_given_back_together_appear_together() {
    const TOGETHER: u16 = 7;
    const TIMES: u16 = 8_000;
    let mut rig = Rig::new();
    rig.driver.probe(VERSION_1 | EVENT_IDX, 2);
    let mem = Arc::clone(rig.driver.mem());
    let index = GuestAddress(rig.driver.rings(0).1.0 + 2);
    let device = Arc::clone(&rig.device);
    let worker = std::thread::spawn(move || {
        let buffers: Vec<(u16, u32)> = (0..TOGETHER).map(|head| (head, 1)).collect();
        for _ in 0..TIMES {
            device.lock().queues[0].push_all(&buffers).unwrap();
        }
    });
    let mut seen = 0u16;
    while seen < TOGETHER * TIMES {
        seen = mem.load(index, Ordering::Acquire).unwrap();
        assert_eq!(seen % TOGETHER, 0, "some buffers of a packet without the others");
    }
    worker.join().unwrap();
    // The index is written once, after all elements: a head that cannot be written publishes none.
    assert!(rig.device.lock().queues[0].push_all(&[(0, 1), (99, 1)]).is_err());
    assert_eq!(mem.load::<u16>(index, Ordering::Acquire).unwrap(), seen);
}

#[test]
fn the_driver_is_interrupted_only_when_it_wants_that() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut rig = Rig::new();
        rig.driver.probe(features, 2);
        let answer = |rig: &Rig, count| {
            let mut device = rig.device.lock();
            (0..count).for_each(|_| device.queues[0].push(0, 0).unwrap());
            device.queues[0].signal();
            rig.driver.interrupts()
        };
        assert_eq!(answer(&rig, 0), 0, "nothing was given back");
        assert_eq!(answer(&rig, 3), 1);
        assert_eq!(answer(&rig, 0), 0);
        // Not before the eighth buffer, or never.
        let flags = rig.driver.rings(0).0;
        rig.driver.mem().write_obj(1u16, flags).unwrap();
        rig.driver.mem().write_obj(7u16, GuestAddress(flags.0 + 4 + 16)).unwrap();
        assert_eq!(answer(&rig, 3), 0);
        let wanted = u64::from(features & EVENT_IDX != 0);
        assert_eq!(answer(&rig, 4), wanted, "the eighth is among these");
        assert_eq!(answer(&rig, 4), 0);
    }
}

/// The host's kernel has a queue, its notifications, and the interrupt.
#[test]
fn an_offloaded_queue_goes_past_the_event_loop() {
    use crate::virtio::Runner;
    use event_manager::{EventManager, SubscriberOps};

    let mut rig = Rig::over(Recorder { offloaded: Some(1), ..Recorder::default() });
    rig.driver.probe(VERSION_1, 2);
    rig.first_look();
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Runner::new(rig.driver.transport().clone()));
    for queue in 0..2 {
        rig.driver.write(reg::QUEUE_NOTIFY, queue);
    }
    while manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(rig.device.lock().processed, [0]);
    // What the kernel waits for is there, and unread.
    assert_eq!(rig.device.lock().queues[1].kick().read().unwrap(), 1);

    // The bit reads as set until the reset, although the device sets it for no buffer.
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 0);
    let interrupt = rig.device.lock().interrupt.clone().unwrap();
    let event = interrupt.share().unwrap();
    event.write(1).unwrap();
    assert_eq!(rig.driver.interrupts(), 1);
    for _ in 0..2 {
        assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 1);
        rig.driver.write(reg::INTERRUPT_ACK, 3);
    }
    interrupt.signal_config_change().unwrap();
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 3);

    // The driver stops it alone.
    rig.driver.write(reg::QUEUE_SEL, 1);
    rig.driver.write(reg::QUEUE_READY, 0);
    assert_eq!(rig.device.lock().stopped, [1]);
    rig.driver.reset();
    assert_eq!(rig.driver.read(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_line_is_pulsed_in_place_of_the_event() {
    use std::sync::atomic::AtomicU32;

    let mut rig = Rig::over(Recorder::default());
    rig.driver.probe(VERSION_1, 1);
    rig.first_look();
    let interrupt = rig.device.lock().interrupt.clone().unwrap();
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!(rig.driver.interrupts(), 1);

    let pulses = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&pulses);
    rig.driver.transport().interrupt().connect(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!((rig.driver.interrupts(), pulses.load(Ordering::Relaxed)), (0, 1));
    // The host's kernel pulses a shared line by the event; then so does the device.
    interrupt.share().unwrap();
    interrupt.signal_used_queue(0).unwrap();
    assert_eq!((rig.driver.interrupts(), pulses.load(Ordering::Relaxed)), (1, 1));
}
