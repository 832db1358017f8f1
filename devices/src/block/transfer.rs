// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests in flight, each moved in pieces that complete quickly.

use std::time::Instant;

use mm::units::usize_from;

use super::disk_engine::{DiskAction, Piece};
use super::protocol::BlockHeader;
use super::request::{DiskOperation, DiskRequest};
use crate::virtio::{ChainMemory, IoVecs};

/// One request between its queue and its status.
#[derive(Debug)]
pub(super) struct DiskTransfer {
    /// Queue that it came from.
    pub(super) queue: u16,
    /// First descriptor.
    pub(super) head: u16,
    /// All its descriptors.
    pub(super) buffer: ChainMemory,
    pub(super) request: DiskRequest,
    /// Whether its data must be durable before it completes.
    pub(super) durable: bool,
    /// When it was taken from its queue.
    pub(super) since: Option<Instant>,
    done: u64,
    flushed: bool,
    memory: IoVecs,
}

/// What a transfer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferStep {
    /// This, with `len` bytes of its memory.
    Piece { action: DiskAction, offset: u64, len: u64 },
    /// Nothing: it is done.
    Finished,
    /// Its buffer is shorter than it was, or the disk is.
    Impossible,
}

impl DiskTransfer {
    /// A transfer of nothing; its buffer is filled first.
    fn new() -> Self {
        Self {
            queue: 0,
            head: 0,
            buffer: ChainMemory::default(),
            request: DiskRequest { operation: DiskOperation::GetId, len: 0 },
            durable: false,
            since: None,
            done: 0,
            flushed: false,
            memory: IoVecs::default(),
        }
    }

    /// Begins with `request`, which is in the buffer.
    pub(super) fn begin(&mut self, request: DiskRequest, since: Instant, durable: bool) {
        self.request = request;
        self.durable = durable;
        self.since = Some(since);
        self.done = 0;
        self.flushed = false;
    }

    /// Makes the next piece ready, of at most `limit` bytes, on a disk of `size` bytes.
    ///
    /// Must not be called while a piece is in flight.
    pub(super) fn prepare(&mut self, limit: usize, size: u64) -> TransferStep {
        let left = self.request.len - self.done;
        let (action, start) = match self.request.operation {
            DiskOperation::Read { offset } => (DiskAction::Read, offset),
            DiskOperation::Write { offset } => (DiskAction::Write, offset),
            DiskOperation::Discard { offset } => (DiskAction::Discard, offset),
            DiskOperation::WriteZeroes { offset, unmap } => (DiskAction::Zero { unmap }, offset),
            DiskOperation::GetId => return TransferStep::Finished,
            DiskOperation::Flush if self.flushed => return TransferStep::Finished,
            DiskOperation::Flush => {
                return TransferStep::Piece { action: DiskAction::Flush, offset: 0, len: 0 };
            }
        };
        let offset = start + self.done;
        if left == 0 {
            return match self.durable && !self.flushed {
                true => TransferStep::Piece { action: DiskAction::Flush, offset: 0, len: 0 },
                false => TransferStep::Finished,
            };
        }
        // The image may have been replaced by a smaller one since the request was checked.
        if offset + left > size {
            return TransferStep::Impossible;
        }
        let limit = usize_from(left).min(limit);
        let len = match action {
            DiskAction::Read => {
                let from = usize_from(self.done);
                self.memory.gather_from(&self.buffer.writable, from, limit) as u64
            }
            DiskAction::Write => {
                let from = BlockHeader::LEN + usize_from(self.done);
                self.memory.gather_from(&self.buffer.readable, from, limit) as u64
            }
            _ => left,
        };
        if len == 0 {
            TransferStep::Impossible
        } else {
            TransferStep::Piece { action, offset, len }
        }
    }

    /// The piece that `prepare` made ready.
    pub(super) fn piece(&self, action: DiskAction, offset: u64, len: u64) -> Piece<'_> {
        Piece { action, offset, len, memory: &self.memory }
    }

    /// A piece has ended, with `bytes` moved.
    pub(super) fn advance(&mut self, bytes: u64) {
        let moved_all = self.done == self.request.len;
        if moved_all || self.request.operation == DiskOperation::Flush {
            self.flushed = true;
        } else {
            self.done = self.request.len.min(self.done + bytes);
        }
    }
}

/// All transfers of a device, each under a number that the engine knows it by. Those that are over
/// stay for the next request: allocating the lists of one costs as much as the rest of it.
#[derive(Debug)]
pub(super) struct Transfers {
    slots: Vec<TransferSlot>,
    free: Vec<u16>,
}

#[derive(Debug, Default)]
struct TransferSlot {
    /// On the heap, so that it does not move while a piece of it is in flight.
    transfer: Option<Box<DiskTransfer>>,
    taken: bool,
}

/// How many transfers are kept: enough for a queue with many small requests in flight.
const KEPT: u16 = 64;

impl Transfers {
    /// Room for `slots` transfers.
    pub(super) fn new(slots: u16) -> Self {
        let empty = std::iter::repeat_with(TransferSlot::default).take(slots.into());
        Self { slots: empty.collect(), free: (0..slots).rev().collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a slot for one more transfer, unless all are taken.
    pub(super) fn claim(&mut self) -> Option<u16> {
        let token = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(token))?;
        slot.taken = true;
        slot.transfer.get_or_insert_with(|| Box::new(DiskTransfer::new()));
        Some(token)
    }

    /// The transfer in a slot that is taken.
    pub(super) fn get_mut(&mut self, token: u16) -> Option<&mut DiskTransfer> {
        let slot = self.slots.get_mut(usize::from(token)).filter(|slot| slot.taken)?;
        slot.transfer.as_deref_mut()
    }

    /// Gives back the slot of a transfer that is over.
    pub(super) fn release(&mut self, token: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(token)).filter(|slot| slot.taken) else {
            return;
        };
        slot.taken = false;
        if token >= KEPT {
            slot.transfer = None;
        }
        self.free.push(token);
    }
}
