// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bounded output buffer from a vCPU to the event loop; a vCPU never waits for it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Both ends; cheap to clone.
#[derive(Clone)]
pub(super) struct Backlog(Arc<BacklogBuffer>);

struct BacklogBuffer {
    state: Mutex<BacklogState>,
    event: EventFd,
    capacity: usize,
}

#[derive(Default)]
struct BacklogState {
    bytes: VecDeque<u8>,
    /// Since the last look.
    lost: u64,
    all_lost: u64,
}

impl Backlog {
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(BacklogBuffer { state: Mutex::default(), event, capacity })))
    }

    /// Readable when there is output.
    pub(super) fn event(&self) -> &EventFd {
        &self.0.event
    }

    /// Takes all output, and the number of bytes lost before it.
    pub(super) fn take(&self) -> (VecDeque<u8>, u64) {
        // Only wakes us; the count means nothing.
        let _ = self.0.event.read();
        let mut state = self.lock();
        (std::mem::take(&mut state.bytes), std::mem::take(&mut state.lost))
    }

    /// Notes that clients have lost `bytes` bytes.
    pub(super) fn note_lost(&self, bytes: u64) {
        self.lock().all_lost += bytes;
    }

    /// Bytes that were lost so far, here or by clients.
    pub(super) fn all_lost(&self) -> u64 {
        self.lock().all_lost
    }

    fn lock(&self) -> MutexGuard<'_, BacklogState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Backlog {
    /// Never fails: bytes that do not fit are counted as lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let taken = bytes.len().min(self.0.capacity - state.bytes.len());
        let first = state.bytes.is_empty();
        state.bytes.extend(&bytes[..taken]);
        let lost = (bytes.len() - taken) as u64;
        state.lost += lost;
        state.all_lost += lost;
        drop(state);
        if first {
            // Fails only when the counter is full: then the loop is awake already.
            let _ = self.0.event.write(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut backlog = Backlog::new(4).unwrap();
        backlog.write_all(b"abc").unwrap();
        backlog.write_all(b"def").unwrap();
        assert!(backlog.event().read().is_ok());
        assert_eq!(backlog.take(), (VecDeque::from(*b"abcd"), 2));
        assert_eq!(backlog.take(), (VecDeque::new(), 0));
        backlog.write_all(b"x").unwrap();
        assert!(backlog.event().read().is_ok(), "each first byte wakes the loop");
    }
}
