// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Input buffer for the serial port, which has room for a few bytes at a time.

use std::sync::Arc;

use devices::legacy::SerialPort;
use vmm_sys_util::eventfd::EventFd;

/// Bytes not yet read by the guest.
pub struct Feed {
    serial: Arc<SerialPort>,
    waiting: Vec<u8>,
}

impl Feed {
    /// Bytes to read from a source at a time.
    pub const CHUNK: usize = 256;

    /// Nothing yet, for `serial`.
    pub fn new(serial: Arc<SerialPort>) -> Self {
        Self { serial, waiting: Vec::new() }
    }

    /// Whether a source may be read: nothing is read that the guest has no room for.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds what was read.
    pub fn add(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The bytes that wait, to be appended to.
    pub fn waiting(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }

    /// Readable after the guest has read all that it had.
    pub fn drained(&self) -> &EventFd {
        self.serial.drained()
    }

    /// Passes as much input to the guest as it has room for.
    pub fn pump(&mut self) {
        let count = self.serial.room().min(self.waiting.len());
        match self.serial.input(&self.waiting[..count]) {
            Ok(taken) => drop(self.waiting.drain(..taken)),
            // Its interrupt cannot be raised, and so the guest would not look.
            Err(_) => self.waiting.clear(),
        }
    }
}
