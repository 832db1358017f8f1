// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The epoll loop of the main thread: queue notifications of all devices, console input, the
//! receiving end of the API, and timers.
//!
//! The loop exists before any machine does, because a machine may be described and started over
//! the API. Whoever has a file descriptor to watch implements [`MutEventSubscriber`] and is added
//! directly ([`EventLoop::add`]) or, from within a subscriber or from another thread, through a
//! [`LoopHandle`].
//!
//! ```no_run
//! # fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let mut events = vmm::event_loop::EventLoop::new()?;
//! let handle = events.handle(); // give it to builder::build() and to the API's controller
//! let reason = events.run();
//! std::process::exit(reason.code().into());
//! # }
//! ```

use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberOps};

use crate::exit::{ExitReason, ExitSignal};

/// Whoever watches file descriptors in the loop. `init` registers them, `process` serves them;
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
}

impl EventLoop {
    /// How many events one epoll call takes at most: there are a dozen descriptors or so.
    const READY_EVENTS: usize = 32;

    /// A loop without subscribers.
    pub fn new() -> Result<Self, EventLoopError> {
        let manager = EventManager::new_with_capacity(Self::READY_EVENTS)?;
        let exit = Arc::new(ExitSignal::new(manager.remote_endpoint()));
        Ok(Self { manager, exit })
    }

    /// Adds a subscriber at once.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// A handle for subscribers, devices and other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle { endpoint: self.manager.remote_endpoint(), exit: Arc::clone(&self.exit) }
    }

    /// Serves events until someone raises the exit signal, and says why.
    ///
    /// What came in together with the exit is still served, so a console's last words are seen.
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

/// The way to the loop from elsewhere; cheap to clone.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
    exit: Arc<ExitSignal>,
}

impl LoopHandle {
    /// Adds a subscriber as soon as the loop has served the events at hand. Never blocks.
    pub fn add(&self, subscriber: Subscriber) -> Result<(), EventLoopError> {
        Ok(self.endpoint.fire(move |manager| {
            manager.add_subscriber(subscriber);
        })?)
    }

    /// The signal that ends the loop.
    pub fn exit(&self) -> &Arc<ExitSignal> {
        &self.exit
    }
}
