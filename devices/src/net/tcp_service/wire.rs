// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames between the guest and smoltcp.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::time::Instant;

/// Longest frame that is sent: a packet of 1500 bytes and the Ethernet header.
const FRAME: usize = 1514;
/// Frames that wait for the guest, at most.
pub(super) const MAX_WAITING: usize = 64;

/// A frame from the guest, and frames to it.
#[derive(Debug, Default)]
pub(super) struct Wire {
    received: Option<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
}

impl Wire {
    /// Receives a frame from the guest; false if it is dropped because a reply would not fit.
    pub(super) fn receive(&mut self, frame: Vec<u8>) -> bool {
        let room = !self.is_full();
        self.received = Some(frame).filter(|_| room);
        room
    }

    /// The next frame to the guest.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front()
    }

    /// Frames that wait for the guest.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }
}

impl Device for Wire {
    type RxToken<'a> = ReceiveToken;
    type TxToken<'a> = SendToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(ReceiveToken, SendToken<'_>)> {
        if self.is_full() {
            return None;
        }
        let frame = self.received.take()?;
        Some((ReceiveToken(frame), SendToken(&mut self.waiting)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<SendToken<'_>> {
        (!self.is_full()).then_some(SendToken(&mut self.waiting))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        // The guest leaves checksums to its network card, which is this device.
        let mut checksums = ChecksumCapabilities::default();
        checksums.ipv4 = Checksum::Tx;
        checksums.tcp = Checksum::Tx;
        capabilities.checksum = checksums;
        capabilities
    }
}

/// A frame from the guest.
pub(super) struct ReceiveToken(Vec<u8>);

impl RxToken for ReceiveToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

/// Room for a frame to the guest.
pub(super) struct SendToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for SendToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, act: F) -> R {
        let mut frame = vec![0; len];
        let result = act(&mut frame);
        self.0.push_back(frame);
        result
    }
}
