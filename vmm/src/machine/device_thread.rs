// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device thread with its own event loop, for devices that must not wait for other devices or API
//! requests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use devices::virtio::LongestHold;
use event_manager::{EventManager, RemoteEndpoint, SubscriberOps};

use crate::event_loop::{Subscriber, timed};

/// Stack of the thread: subscribers keep nothing large there.
const STACK: usize = 256 << 10;
/// Events per epoll call: a device has a few queues and a timer.
const READY_EVENTS: usize = 8;

/// The thread; dropping it ends the loop after the turn that it is in, and joins it.
pub struct DeviceThread {
    name: String,
    stop: Arc<AtomicBool>,
    wake: RemoteEndpoint<Subscriber>,
    longest_turn: Arc<LongestHold>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts thread `name`, which serves `subscribers`.
    ///
    /// # Errors
    ///
    /// Where the host has no thread or descriptor left.
    pub fn spawn(name: &str, subscribers: Vec<Subscriber>) -> io::Result<Self> {
        let manager = EventManager::new_with_capacity(READY_EVENTS);
        let mut manager = manager.map_err(|error| io::Error::other(error.to_string()))?;
        let wake = manager.remote_endpoint();
        let longest_turn = Arc::default();
        for subscriber in subscribers {
            manager.add_subscriber(timed(subscriber, &longest_turn));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = manager.run() {
                    tracing::error!(%error, "a device's event loop failed");
                    return;
                }
            }
        };
        let thread = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run)?;
        Ok(Self { name: name.to_owned(), stop, wake, longest_turn, thread: Some(thread) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The longest that one of its subscribers kept the loop from the others.
    pub fn longest_turn(&self) -> &LongestHold {
        &self.longest_turn
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Fails only if the thread has ended.
        let _ = self.wake.kick();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(thread = self.name, "a device thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Echo {
        event: EventFd,
        seen: Sender<String>,
    }

    impl MutEventSubscriber for Echo {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.event.read().unwrap();
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.seen.send(name).unwrap();
        }
    }

    #[test]
    fn serves_its_subscribers_on_its_own_thread_until_dropped() {
        let (seen, names) = mpsc::channel();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let echo = Echo { event: event.try_clone().unwrap(), seen };
        let thread = DeviceThread::spawn("block-rootfs", vec![Box::new(echo)]).unwrap();
        event.write(1).unwrap();
        assert_eq!(names.recv().unwrap(), "block-rootfs");
        drop(thread);
        // Its subscriber was dropped with it.
        assert!(names.recv().is_err());
    }
}
