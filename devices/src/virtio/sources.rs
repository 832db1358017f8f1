// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host-side event sources of a device: a TAP with a frame, a timer, a completed request. Each
//! event leads to one round of a queue.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::QueueHost;

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has something to be read, or has been closed at the other end.
    Readable,
    /// It takes data again after it was full.
    Writable,
}

/// A descriptor that becomes readable, or writable, when there is something to do for a queue.
///
/// It is watched edge-triggered: the device is called once each time that something new arrives, and
/// a device without a driver, which reads nothing, costs no time.
#[derive(Debug)]
pub struct EventSource {
    /// A duplicate of the device's descriptor, so that it stays open while it is watched.
    pub fd: OwnedFd,
    /// The queue to process.
    pub queue: u16,
    /// What it is watched for.
    pub when: Readiness,
}

impl EventSource {
    /// One that is watched for something to be read.
    pub fn readable(fd: OwnedFd, queue: u16) -> Self {
        Self { fd, queue, when: Readiness::Readable }
    }
}

/// Subscribes the host's side of one device to an event loop.
pub struct SourceRunner {
    host: Arc<dyn QueueHost>,
    sources: Vec<EventSource>,
}

impl SourceRunner {
    /// A runner for `sources` of the device behind `host`.
    pub fn new(host: Arc<dyn QueueHost>, sources: Vec<EventSource>) -> Self {
        Self { host, sources }
    }
}

impl MutEventSubscriber for SourceRunner {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (number, source) in (0..).zip(&self.sources) {
            let when = match source.when {
                Readiness::Readable => EventSet::IN,
                Readiness::Writable => EventSet::OUT,
            } | EventSet::EDGE_TRIGGERED;
            let events = Events::with_data_raw(source.fd.as_raw_fd(), number, when);
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, "cannot watch the host's side of a device");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if let Some(source) = self.sources.get(events.data() as usize) {
            self.host.process_queue(source.queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU32, Ordering};

    use event_manager::{EventManager, SubscriberOps};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Count([AtomicU32; 2]);

    impl QueueHost for Count {
        fn queue_events(&self) -> &[EventFd] {
            &[]
        }

        fn process_queue(&self, queue: u16) {
            self.0[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_event_leads_to_one_round_of_its_queue_even_if_nothing_is_read() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let other = EventFd::new(EFD_NONBLOCK).unwrap();
        let host = Arc::new(Count([AtomicU32::new(0), AtomicU32::new(0)]));
        let source = |event: &EventFd, queue| {
            // SAFETY: the descriptor is open for as long as `event` lives.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
            EventSource::readable(fd.as_fd().try_clone_to_owned().unwrap(), queue)
        };
        let sources = vec![source(&other, 0), source(&event, 1)];
        let mut manager: EventManager<SourceRunner> = EventManager::new().unwrap();
        manager.add_subscriber(SourceRunner::new(host.clone(), sources));
        for round in 1..=3 {
            event.write(1).unwrap();
            manager.run_with_timeout(1000).unwrap();
            manager.run_with_timeout(0).unwrap();
            assert_eq!(host.0[1].load(Ordering::Relaxed), round);
        }
        assert_eq!(host.0[0].load(Ordering::Relaxed), 0);
    }
}
