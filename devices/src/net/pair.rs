// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two queues of the device that belong together: one for each direction.

use std::time::Instant;

use super::receiver::Receiver;
use super::transmitter::Transmitter;
use crate::virtio::DeviceQueue;

/// A receive queue and a transmit queue, and their wait states.
pub(super) struct Pair {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    /// When the rate limit admits the next frame to the guest, if it holds one back.
    pub(super) rx_at: Option<Instant>,
    /// The same for frames from the guest.
    pub(super) tx_at: Option<Instant>,
}

impl Pair {
    /// Those of `queues`, each two of which are a pair.
    pub(super) fn all(queues: Vec<DeviceQueue>, features: u64) -> Vec<Self> {
        let mut queues = queues.into_iter();
        let next = || {
            let (rx, tx) = (queues.next()?, queues.next()?);
            Some(Self {
                receiver: Receiver::new(rx, features),
                transmitter: Transmitter::new(tx),
                rx_at: None,
                tx_at: None,
            })
        };
        std::iter::from_fn(next).collect()
    }
}
