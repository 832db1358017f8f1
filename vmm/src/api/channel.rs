// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channel between the API thread and the thread that owns the machine.
//!
//! 1. The API puts an action and the place for its answer into a bounded queue.
//! 2. It signals an eventfd, which the event loop watches.
//! 3. The loop takes everything out of the queue, does it, and answers each; an answer may also be
//!    kept and given later, when it is the guest that has to speak.
//!
//! A client that goes away drops its end of the answer; what it asked for is done all the same.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use tokio::sync::oneshot;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::action::{Action, Refusal, Reply};

/// How many actions may wait: more than the server has connections.
const DEPTH: usize = 32;

/// A new channel: the end that asks and the end that answers.
pub fn channel() -> io::Result<(Door, Requests)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = mpsc::sync_channel(DEPTH);
    Ok((Door { sender, wake: Arc::clone(&wake) }, Requests { receiver, wake }))
}

/// The end that asks; cheap to clone.
#[derive(Debug, Clone)]
pub struct Door {
    sender: SyncSender<Request>,
    wake: Arc<EventFd>,
}

impl Door {
    /// Asks, and waits for the answer.
    pub async fn ask(&self, action: Action) -> Result<Reply, Refusal> {
        let (answer, answered) = oneshot::channel();
        let request = Request { action, answer: Answer(answer) };
        self.sender.try_send(request).map_err(|_| Refusal::NoAnswer)?;
        self.wake.write(1).map_err(|_| Refusal::NoAnswer)?;
        answered.await.unwrap_or(Err(Refusal::NoAnswer))
    }
}

/// The end that answers.
#[derive(Debug)]
pub struct Requests {
    receiver: Receiver<Request>,
    wake: Arc<EventFd>,
}

impl Requests {
    /// Takes the signal back. Call this before [`take`](Self::take), so that what comes in
    /// meanwhile signals again.
    pub fn acknowledge(&self) {
        // An error means that there was no signal: then the queue is looked at for nothing.
        let _ = self.wake.read();
    }

    /// The next one waiting, if any.
    pub fn take(&self) -> Option<Request> {
        self.receiver.try_recv().ok()
    }

    /// Waits for the next one; `None` when nobody is left to ask.
    pub fn wait(&self) -> Option<Request> {
        self.receiver.recv().ok()
    }
}

impl AsRawFd for Requests {
    /// Readable when something waits.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

/// An action, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// Where the answer goes.
    pub answer: Answer,
}

/// Where an answer goes. Dropped without one, it answers [`Refusal::NoAnswer`].
#[derive(Debug)]
pub struct Answer(oneshot::Sender<Result<Reply, Refusal>>);

impl Answer {
    /// Answers. Never blocks.
    pub fn give(self, answer: Result<Reply, Refusal>) {
        // Whoever asked may have gone away.
        let _ = self.0.send(answer);
    }
}
