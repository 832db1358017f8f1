// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Services inside the monitor that answer on an interface, such as the metadata service.

use std::time::Instant;

/// A host on the guest's wire that is not behind the TAP.
pub trait Responder: Send {
    /// Whether a frame that the guest sends, of which `start` are the first bytes (at least 42 if
    /// it is that long), is for this service alone.
    fn wants(&self, start: &[u8]) -> bool;

    /// Takes a frame that it [`wants`](Self::wants). Its checksums may be unfinished, as in a frame
    /// given to a network card.
    fn take(&mut self, frame: &[u8], now: Instant);

    /// The next frame to the guest, if there is one, in place of what is in `frame`.
    fn give(&mut self, frame: &mut Vec<u8>, now: Instant) -> bool;

    /// When it wants to be asked for frames though none were sent: retransmissions.
    fn next_deadline(&mut self, now: Instant) -> Option<Instant>;

    /// The driver has reset the device: connections and frames to the guest are dropped.
    fn reset(&mut self);
}
