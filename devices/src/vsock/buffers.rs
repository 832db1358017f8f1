// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of the guest's that were taken from its receive queue and wait for packets.
//!
//! Linux posts buffers of 4 KiB. Several are held, so that one system call reads what a socket has
//! into all of them: each then gets a header of its own and is a packet.

use std::collections::VecDeque;

use mm::units::{SaturatingInto, usize_from};
use zerocopy::IntoBytes;

use super::protocol::PacketHeader;
use crate::virtio::{DeviceQueue, IoVecs, QueueError, Segments};

/// Buffers held at a time: 64 KiB of Linux's.
const HELD: usize = 16;

/// One buffer: room for a header and data.
#[derive(Debug)]
struct HeldBuffer {
    head: u16,
    buffer: Segments,
    /// Bytes of data that fit.
    room: usize,
    /// How many of the vectors are its.
    vectors: usize,
}

/// A receive queue with the buffers taken from it.
#[derive(Debug)]
pub(super) struct Buffers {
    queue: DeviceQueue,
    held: VecDeque<HeldBuffer>,
    /// The room for data in all of `held`.
    room: IoVecs,
    /// As much of it as the guest's credit allows, if that is less.
    limited: IoVecs,
    /// Buffers that are given back together; kept for its memory.
    filled: Vec<(u16, u32)>,
}

/// What taking buffers has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// There is room for a packet.
    pub(super) any: bool,
    /// Buffers that no packet fits into, which were given back.
    pub(super) unusable: u64,
}

impl Buffers {
    pub(super) fn new(queue: DeviceQueue) -> Self {
        let (room, limited) = (IoVecs::default(), IoVecs::default());
        Self { queue, held: VecDeque::with_capacity(HELD), room, limited, filled: Vec::new() }
    }

    /// Takes buffers from the queue; without any, enables notifications.
    pub(super) fn take(&mut self) -> Result<Taken, QueueError> {
        let mut unusable = 0;
        while self.held.len() < HELD {
            let Some(chain) = self.queue.pop()? else { break };
            let head = chain.head_index();
            let before = self.room.count();
            let held = Segments::collect(chain, self.queue.size()).ok().and_then(|buffer| {
                let room = buffer.writable_len().checked_sub(PacketHeader::LEN as u64)?;
                let room = Some(usize_from(room)).filter(|room| *room > 0)?;
                let mem = self.queue.mem();
                let added = self.room.append(mem, &buffer.writable, PacketHeader::LEN as u64, room);
                let vectors = self.room.count() - before;
                (added == room).then_some(HeldBuffer { head, buffer, room, vectors })
            });
            match held {
                Some(held) => self.held.push_back(held),
                None if self.room.count() > before && !self.held.is_empty() => {
                    // Too scattered to be read into together with the others: later.
                    self.room.truncate(before);
                    self.queue.undo_pop();
                    break;
                }
                None => {
                    self.room.truncate(before);
                    unusable += 1;
                    self.queue.push(head, 0)?;
                }
            }
        }
        if self.held.is_empty() {
            // Checked again: a buffer may have arrived before notifications were enabled.
            self.queue.rearm();
        }
        Ok(Taken { any: !self.held.is_empty(), unusable })
    }

    /// Where up to `limit` bytes of data go.
    pub(super) fn room(&mut self, limit: usize) -> &IoVecs {
        if limit >= self.room.len() {
            return &self.room;
        }
        self.limited.clear();
        let mut left = limit;
        for held in &self.held {
            let room = left.min(held.room);
            let offset = PacketHeader::LEN as u64;
            left -= self.limited.append(self.queue.mem(), &held.buffer.writable, offset, room);
            if left == 0 {
                break;
            }
        }
        &self.limited
    }

    /// Gives packets to the guest: one with `len` bytes that are in the room, cut where a buffer ends,
    /// or one without data. `header` makes the header of each from its length. Returns how many
    /// packets they are.
    pub(super) fn give(
        &mut self,
        len: usize,
        header: impl Fn(u32) -> PacketHeader,
    ) -> Result<usize, QueueError> {
        let (mut left, mut vectors) = (len, 0);
        self.filled.clear();
        for held in &self.held {
            if left == 0 && !self.filled.is_empty() {
                break;
            }
            // At most the guest's 32-bit credit.
            let data = left.min(held.room).saturating_u32();
            held.buffer.write(self.queue.mem(), 0, header(data).as_bytes());
            left -= left.min(held.room);
            vectors += held.vectors;
            self.filled.push((held.head, data + PacketHeader::LEN as u32));
        }
        self.held.drain(..self.filled.len());
        self.room.drop_front(vectors);
        self.queue.push_all(&self.filled)?;
        Ok(self.filled.len())
    }

    /// Interrupts the driver if it wants that.
    pub(super) fn signal(&mut self) {
        self.queue.signal();
    }
}
