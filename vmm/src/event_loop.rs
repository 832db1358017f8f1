// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The epoll loop of the main thread: queue notifications of all devices, console input, the
//! receiving end of the API, and timers.
//!
//! The loop exists before any machine does, because a machine may be described and started over the
//! API. A source of events with a file descriptor implements [`MutEventSubscriber`] and is added
//! directly ([`EventLoop::add`]) or, from within a subscriber or from another thread, through a
//! [`LoopHandle`].
//!
//! ```no_run
//! # fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let mut events = vmm::event_loop::EventLoop::new()?;
//! let handle = events.handle(); // pass it to builder::build() and to the API's controller
//! let reason = events.run();
//! std::process::exit(reason.code().into());
//! # }
//! ```

use std::sync::Arc;

use devices::virtio::LongestHold;
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberOps,
};

use crate::exit::{ExitReason, ExitSignal};

/// Watches file descriptors in the loop. `init` registers them, `process` serves them;
/// both run on the main thread and must not block.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The loop cannot be set up or went wrong.
#[derive(Debug, thiserror::Error)]
#[error("event loop: {0}")]
pub struct EventLoopError(#[from] event_manager::Error);

/// Owns all subscribers; runs on the main thread.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    exit: Arc<ExitSignal>,
    longest_turn: Arc<LongestHold>,
}

impl EventLoop {
    /// Maximum number of events per epoll call: there are about a dozen descriptors.
    const READY_EVENTS: usize = 32;

    /// A loop without subscribers.
    ///
    /// # Errors
    ///
    /// The host cannot create an epoll instance or eventfd.
    pub fn new() -> Result<Self, EventLoopError> {
        let manager = EventManager::new_with_capacity(Self::READY_EVENTS)?;
        let endpoint = manager.remote_endpoint();
        let exit = Arc::new(ExitSignal::new(move || {
            // Fails only if the loop has ended, and then nothing waits any more.
            let _ = endpoint.kick();
        }));
        Ok(Self { manager, exit, longest_turn: Arc::default() })
    }

    /// Adds a subscriber immediately.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(timed(subscriber, &self.longest_turn));
    }

    /// A handle for subscribers, devices and other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle {
            endpoint: self.manager.remote_endpoint(),
            exit: Arc::clone(&self.exit),
            longest_turn: Arc::clone(&self.longest_turn),
        }
    }

    /// Serves events until someone raises the exit signal, and says why.
    ///
    /// Events that arrived together with the exit are still served, so the last console output is
    /// shown.
    pub fn run(&mut self) -> ExitReason {
        loop {
            if let Some(reason) = self.exit.reason() {
                return reason.clone();
            }
            if let Err(error) = self.manager.run() {
                self.exit.raise(ExitReason::HostError(EventLoopError(error).to_string()));
            }
        }
    }
}

/// A handle of the loop for other threads; cheap to clone.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
    exit: Arc<ExitSignal>,
    longest_turn: Arc<LongestHold>,
}

impl LoopHandle {
    /// Adds a subscriber once the loop has served its current events. Never blocks.
    ///
    /// # Errors
    ///
    /// Where the loop has ended.
    pub fn add(&self, subscriber: Subscriber) -> Result<(), EventLoopError> {
        let subscriber = timed(subscriber, &self.longest_turn);
        Ok(self.endpoint.fire(move |manager| {
            manager.add_subscriber(subscriber);
        })?)
    }

    /// The longest that one subscriber kept the loop from the others.
    pub fn longest_turn(&self) -> &LongestHold {
        &self.longest_turn
    }

    /// The signal that ends the loop.
    pub fn exit(&self) -> &Arc<ExitSignal> {
        &self.exit
    }
}

/// Records how long each turn of `subscriber` lasts.
pub(crate) fn timed(subscriber: Subscriber, longest: &Arc<LongestHold>) -> Subscriber {
    Box::new(Timed { subscriber, longest: Arc::clone(longest) })
}

struct Timed {
    subscriber: Subscriber,
    longest: Arc<LongestHold>,
}

impl MutEventSubscriber for Timed {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.subscriber.init(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let _turn = self.longest.start();
        self.subscriber.process(events, ops);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use event_manager::EventSet;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::exit::ExitReason;

    struct Slow(EventFd, Arc<ExitSignal>);

    impl MutEventSubscriber for Slow {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            std::thread::sleep(Duration::from_millis(3));
            self.1.raise(ExitReason::PowerOff);
        }
    }

    #[test]
    fn the_longest_turn_is_recorded() {
        let mut events = EventLoop::new().unwrap();
        let handle = events.handle();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        events.add(Box::new(Slow(event, Arc::clone(handle.exit()))));
        assert_eq!(handle.longest_turn().micros(), 0);
        events.run();
        assert!(handle.longest_turn().micros() >= 3000);
    }

    #[test]
    fn the_first_reason_counts_and_ends_the_loop() {
        let mut events = EventLoop::new().unwrap();
        let handle = events.handle();
        let thread = std::thread::spawn(move || {
            handle.exit().raise(ExitReason::GuestCrashed("first".into()));
            handle.exit().raise(ExitReason::PowerOff);
        });
        assert_eq!(events.run(), ExitReason::GuestCrashed("first".into()));
        thread.join().unwrap();
        assert_eq!(events.run().code(), 2);
    }
}
