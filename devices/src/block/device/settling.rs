// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work that waits until no piece is in flight: another image, and the end of a reset. No thread
//! waits for the host's disk with the device's lock: the end of the device waits too, but then
//! nothing else has a reference to it.

use std::time::Instant;

use zerocopy::IntoBytes;

use super::BlockDevice;
use super::active::ActiveBlock;
use crate::block::handle::PendingChanges;
use crate::block::transfer::Transfers;
use crate::virtio::{Deadline, Progress};

impl BlockDevice {
    /// Applies changes requested through a handle.
    pub(super) fn apply(&mut self, pending: PendingChanges, active: Option<&mut ActiveBlock>) {
        let PendingChanges { image, bytes, ops } = pending;
        self.limiter.update(bytes, ops, Instant::now());
        if let Some(image) = image
            && let Some(superseded) = self.replacing.replace(image)
        {
            self.remains.push(Box::new(superseded));
        }
        self.replace_when_settled(active);
    }

    /// Installs the waiting image if no piece is in flight. Earlier pieces have completed on the
    /// old one; the rest of their requests goes to the new.
    pub(super) fn replace_when_settled(&mut self, active: Option<&mut ActiveBlock>) {
        if self.under_way > 0 {
            return;
        }
        let Some(image) = self.replacing.take() else { return };
        let before = self.disk.replace(image);
        self.remains.push(Box::new(before));
        let Some(active) = active else { return };
        active.interrupt.publish_config(self.config().as_bytes());
        if let Err(error) = active.interrupt.signal_config_change() {
            tracing::warn!(%error, "cannot interrupt the driver of a block device");
        }
    }

    /// After a reset: collects the results of pieces in flight. When none is left, their memory
    /// belongs to the driver again and their requests are dropped.
    pub(super) fn settle_step(&mut self, deadline: &mut Deadline) -> Progress {
        if self.under_way > 0
            && let Err(error) = self.disk.engine.submit()
        {
            self.abandon(&error);
        }
        while let Some(_ended) = self.disk.engine.reap() {
            self.under_way -= 1;
            deadline.charge(Deadline::COMMAND);
        }
        if self.under_way > 0 {
            return Progress::More;
        }
        if !self.transfers.is_empty() {
            let empty = Transfers::new(self.disk.ring.slots);
            self.remains.push(Box::new(std::mem::replace(&mut self.transfers, empty)));
        }
        self.replace_when_settled(None);
        Progress::Done
    }

    /// Waits until no piece is in flight.
    pub(super) fn settle(&mut self) {
        while self.under_way > 0 {
            while let Some(_ended) = self.disk.engine.reap() {
                self.under_way -= 1;
            }
            if self.under_way > 0
                && let Err(error) = self.disk.engine.wait()
            {
                self.abandon(&error);
            }
        }
    }

    /// The host no longer reports completions: the memory of pieces in flight is leaked.
    fn abandon(&mut self, error: &std::io::Error) {
        tracing::error!(%error, "io_uring failed: dropping requests in flight");
        let empty = Transfers::new(self.disk.ring.slots);
        std::mem::forget(std::mem::replace(&mut self.transfers, empty));
        self.runnable.clear();
        self.under_way = 0;
    }
}
