// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Services inside the monitor that answer on an interface, such as the metadata service.

use std::time::Instant;

use crate::virtio::Deadline;

/// A host on the guest's wire that is not behind the TAP.
///
/// The guest controls how many frames it sends and whether it receives replies, so an implementor
/// limits its state and charges its work to the round's deadline.
///
/// A trait although the TCP service is its only implementor: the receiver and the transmitter depend
/// on no protocol.
pub trait Responder: Send {
    /// Whether a frame from the guest is addressed to this service; `start` is its beginning (at
    /// least 42 bytes if it is that long).
    fn wants(&self, start: &[u8]) -> bool;

    /// Receives a frame that it [`wants`](Self::wants). Its checksums may be partial, as with
    /// checksum offload.
    fn take(&mut self, frame: &[u8], now: Instant, deadline: &mut Deadline);

    /// Whether frames wait for the guest.
    fn has_frames(&self) -> bool;

    /// Writes the next frame for the guest to `frame`, if there is one.
    fn give(&mut self, frame: &mut Vec<u8>, now: Instant, deadline: &mut Deadline) -> bool;

    /// Time of the next poll without new frames, for retransmissions.
    fn next_deadline(&mut self, now: Instant) -> Option<Instant>;

    /// Forgets everything about the guest: its driver has reset the device.
    fn reset(&mut self);
}
