// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests in flight, each moved in pieces that complete quickly.

use std::sync::Arc;
use std::time::Instant;

use mm::units::usize_from;

use super::disk_engine::{DiskAction, Piece};
use super::protocol::BlockHeader;
use super::request::{DiskOperation, DiskRequest};
use crate::virtio::{GuestMemoryMmap, IoVecs, Segments};

/// One request between its queue and its status.
#[derive(Debug)]
pub(super) struct DiskTransfer {
    /// Queue that it came from.
    pub(super) queue: u16,
    /// First descriptor.
    pub(super) head: u16,
    /// All its descriptors.
    pub(super) buffer: Segments,
    pub(super) request: DiskRequest,
    /// Whether its data must be durable before it completes.
    pub(super) durable: bool,
    /// When it was taken from its queue.
    pub(super) since: Instant,
    done: u64,
    flushed: bool,
    memory: IoVecs,
}

/// What every transfer needs memory for; used again, as allocating it costs as much as the rest.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) buffer: Segments,
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
    pub(super) fn new(queue: u16, head: u16, parts: Parts, request: DiskRequest) -> Self {
        let Parts { buffer, memory } = parts;
        Self {
            queue,
            head,
            buffer,
            request,
            durable: false,
            since: Instant::now(),
            done: 0,
            flushed: false,
            memory,
        }
    }

    /// Makes the next piece ready, of at most `limit` bytes, on a disk of `size` bytes.
    ///
    /// Must not be called while a piece is in flight.
    pub(super) fn prepare(
        &mut self,
        mem: &Arc<GuestMemoryMmap>,
        limit: usize,
        size: u64,
    ) -> TransferStep {
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
                self.memory.gather(mem, &self.buffer.writable, self.done, limit) as u64
            }
            DiskAction::Write => {
                let from = self.done + BlockHeader::LEN as u64;
                self.memory.gather(mem, &self.buffer.readable, from, limit) as u64
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

/// All transfers of a device, each under a number that the engine knows it by.
#[derive(Debug)]
pub(super) struct Transfers {
    slots: Vec<Option<DiskTransfer>>,
    free: Vec<u16>,
    spare: Vec<Parts>,
}

/// Most parts that are kept: enough for a queue with many small requests in flight.
const MAX_SPARE: usize = 64;

impl Transfers {
    /// Room for `slots` transfers.
    pub(super) fn new(slots: u16) -> Self {
        let empty = std::iter::repeat_with(|| None).take(slots.into());
        Self { slots: empty.collect(), free: (0..slots).rev().collect(), spare: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes `transfer` in, unless all slots are taken.
    pub(super) fn insert(&mut self, transfer: DiskTransfer) -> Option<u16> {
        let token = self.free.pop()?;
        self.slots[usize::from(token)] = Some(transfer);
        Some(token)
    }

    pub(super) fn get_mut(&mut self, token: u16) -> Option<&mut DiskTransfer> {
        self.slots.get_mut(usize::from(token))?.as_mut()
    }

    /// Parts for one more transfer.
    pub(super) fn spare(&mut self) -> Parts {
        self.spare.pop().unwrap_or_default()
    }

    /// Keeps the parts of a transfer that is over.
    pub(super) fn keep(&mut self, transfer: DiskTransfer) {
        if self.spare.len() < MAX_SPARE {
            self.spare.push(Parts { buffer: transfer.buffer, memory: transfer.memory });
        }
    }

    pub(super) fn remove(&mut self, token: u16) -> Option<DiskTransfer> {
        let transfer = self.slots.get_mut(usize::from(token))?.take()?;
        self.free.push(token);
        Some(transfer)
    }
}
