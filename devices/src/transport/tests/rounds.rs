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
