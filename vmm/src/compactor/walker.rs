// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that walks the page table for API requests, one at a time: the time grows with guest
//! memory, and neither the event loop nor a pass waits for it.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;

use tracing::warn;

use super::job::CompactorError;
use super::live_guest::LiveGuest;

/// Requests that may wait at the same time.
const WAITING: usize = 16;

/// Looks at the guest's memory, and replies.
type MemoryLook = Box<dyn FnOnce(&LiveGuest) + Send>;

/// The handle of the thread; dropping it waits for the current walk.
#[derive(Debug)]
pub(super) struct Walker {
    looks: Option<SyncSender<MemoryLook>>,
    thread: Option<JoinHandle<()>>,
}

impl Walker {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host has no thread to spare.
    pub(super) fn start(guest: LiveGuest) -> io::Result<Self> {
        let (looks, incoming): (SyncSender<MemoryLook>, Receiver<MemoryLook>) =
            mpsc::sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("mm-walk".into())
            .stack_size(256 << 10)
            .spawn(move || incoming.into_iter().for_each(|look| look(&guest)))?;
        Ok(Self { looks: Some(looks), thread: Some(thread) })
    }

    /// Has `look` called on the thread.
    ///
    /// # Errors
    ///
    /// [`CompactorError::TooManyWalks`] if too many wait already; `look` is dropped then.
    pub(super) fn submit(&self, look: MemoryLook) -> Result<(), CompactorError> {
        let looks = self.looks.as_ref().ok_or(CompactorError::Stopped)?;
        looks.try_send(look).map_err(|error| match error {
            TrySendError::Full(_) => CompactorError::TooManyWalks,
            TrySendError::Disconnected(_) => CompactorError::Stopped,
        })
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.looks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the guest memory walker thread panicked");
        }
    }
}
