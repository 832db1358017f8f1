// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channel between the API thread and the thread that owns the machine.
//!
//! 1. The API puts an action and the place for its reply into a bounded queue.
//! 2. It signals an eventfd, which the event loop watches.
//! 3. The loop takes all actions out of the queue, performs them, and replies to each; a reply may
//!    also be sent later, when the guest or another thread must respond first.
//!
//! A client that disconnects drops its end of the reply; the action is performed nevertheless.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Instant;

use tokio::sync::oneshot;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::instance::InstanceAction;
use super::refusal::Refusal;
use super::resources::{Action, Reply};
use crate::exit::{ExitReason, ExitSignal};

/// How many actions may wait: more than the server has connections.
const DEPTH: usize = 32;

/// A new channel: the end that asks and the end that answers.
///
/// # Errors
///
/// The host has no more file descriptors.
pub fn channel() -> io::Result<(ActionSender, ActionReceiver)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = mpsc::sync_channel(DEPTH);
    Ok((
        ActionSender { sender, wake: Arc::clone(&wake), exit: None },
        ActionReceiver { receiver, wake },
    ))
}

/// The end that asks; cheap to clone.
#[derive(Debug, Clone)]
pub struct ActionSender {
    sender: SyncSender<Box<Request>>,
    wake: Arc<EventFd>,
    exit: Option<Arc<ExitSignal>>,
}

impl ActionSender {
    /// Lets a stop action raise `exit` immediately, without the thread that owns the machine.
    pub fn stops_by(&mut self, exit: Arc<ExitSignal>) {
        self.exit = Some(exit);
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    ///
    /// The machine refused, too many actions are waiting already, or the machine has stopped.
    pub async fn ask(&self, action: Action) -> Result<Reply, Refusal> {
        if let (Action::Instance(InstanceAction::Stop), Some(exit)) = (&action, &self.exit) {
            exit.raise(ExitReason::Stopped("a request".into()));
            return Ok(Reply::Done);
        }
        let (reply, replied) = oneshot::channel();
        let request = Request { action, asked: Instant::now(), reply: ReplySender(reply) };
        self.sender.try_send(Box::new(request)).map_err(|_| Refusal::NoAnswer)?;
        self.wake.write(1).map_err(|_| Refusal::NoAnswer)?;
        replied.await.unwrap_or(Err(Refusal::NoAnswer))
    }
}

/// The end that answers.
#[derive(Debug)]
pub struct ActionReceiver {
    receiver: Receiver<Box<Request>>,
    wake: Arc<EventFd>,
}

impl ActionReceiver {
    /// Clears the signal. Call this before [`take`](Self::take), so that a new action signals
    /// again.
    pub fn acknowledge(&self) {
        // An error means that there was no signal; then the queue is empty.
        let _ = self.wake.read();
    }

    /// The next request waiting, if any.
    pub fn take(&self) -> Option<Request> {
        self.receiver.try_recv().ok().map(|request| *request)
    }

    /// Waits for the next request; `None` when all senders are gone.
    pub fn wait(&self) -> Option<Request> {
        self.receiver.recv().ok().map(|request| *request)
    }
}

impl AsRawFd for ActionReceiver {
    /// Readable when a request waits.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

/// An action, and where its reply goes.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// When it was put into the queue.
    pub asked: Instant,
    /// Where the reply goes.
    pub reply: ReplySender,
}

/// The sender of one reply. Dropping it replies [`Refusal::NoAnswer`].
#[derive(Debug)]
pub struct ReplySender(oneshot::Sender<Result<Reply, Refusal>>);

impl ReplySender {
    /// Replies. Never blocks.
    pub fn send(self, reply: Result<Reply, Refusal>) {
        // The client may have disconnected.
        let _ = self.0.send(reply);
    }
}
