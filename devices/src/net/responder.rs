// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Services inside the monitor that answer on an interface, such as the metadata service.

use std::time::Instant;

use crate::virtio::Deadline;

/// A host on the guest's wire that is not behind the TAP.
///
/// The guest decides how many frames it sends and whether it takes the answers, so an implementor
/// bounds what it keeps and charges what it does to the round's deadline.
pub trait Responder: Send {
    /// Whether a frame that the guest sends, of which `start` are the first bytes (at least 42 if
    /// it is that long), is for this service alone.
    fn wants(&self, start: &[u8]) -> bool;

    /// Takes a frame that it [`wants`](Self::wants). Its checksums may be unfinished, as in a frame
    /// given to a network card.
    fn take(&mut self, frame: &[u8], now: Instant, deadline: &mut Deadline);

    /// Whether frames wait for the guest.
    fn has_frames(&self) -> bool;

    /// The next frame to the guest, if there is one, in place of what is in `frame`.
    fn give(&mut self, frame: &mut Vec<u8>, now: Instant, deadline: &mut Deadline) -> bool;

    /// When it wants to be asked for frames though none were sent: retransmissions.
    fn next_deadline(&mut self, now: Instant) -> Option<Instant>;

    /// Forgets everything about the guest: its driver has reset the device.
    fn reset(&mut self);
}
