// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of the guest's that were taken from its receive queue and wait for packets.
//!
//! Linux posts buffers of 4 KiB. Several are held, so that one system call reads what a socket has
//! into all of them: each then gets a header of its own and is a packet.

use std::collections::VecDeque;

use mm::units::SaturatingInto;
use zerocopy::IntoBytes;

use super::protocol::PacketHeader;
use crate::virtio::{Chain, ChainMemory, DeviceQueue, IoVecs, QueueError};

/// Buffers held at a time: 64 KiB of Linux's.
const HELD: usize = 16;

/// One buffer: room for a header and data.
#[derive(Debug)]
struct HeldBuffer {
    head: u16,
    /// Bytes of data that fit.
    room: usize,
    /// How many vectors of `headers` are its.
    header_vectors: usize,
    /// How many vectors of `room` are its.
    room_vectors: usize,
}

/// A receive queue with the buffers taken from it.
#[derive(Debug)]
pub(super) struct Buffers {
    queue: DeviceQueue,
    held: VecDeque<HeldBuffer>,
    /// Where the headers of all of `held` go, one behind the other.
    headers: IoVecs,
    /// The room for data in all of `held`.
    room: IoVecs,
    /// As much of it as the guest's credit allows, if that is less.
    limited: IoVecs,
    /// The buffer taken last; kept for its memory, as are the next two.
    taken: ChainMemory,
    /// Headers of packets that are given together.
    raw: Vec<u8>,
    /// Buffers that are given back together.
    filled: Vec<(u16, u32)>,
}

/// Whether a buffer is held for packets.
enum Holding {
    Held,
    /// No packet fits into it, or it is not RAM.
    Unusable,
    /// One call cannot read into it together with those held before.
    TooScattered,
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
        Self {
            queue,
            held: VecDeque::with_capacity(HELD),
            headers: IoVecs::default(),
            room: IoVecs::default(),
            limited: IoVecs::default(),
            taken: ChainMemory::default(),
            raw: Vec::new(),
            filled: Vec::new(),
        }
    }

    /// Takes buffers from the queue; without any, enables notifications.
    pub(super) fn take(&mut self) -> Result<Taken, QueueError> {
        let mut unusable = 0;
        while self.held.len() < HELD {
            let Some(chain) = self.queue.pop()? else { break };
            let head = chain.head_index();
            match self.hold(chain) {
                Holding::Held => {}
                Holding::TooScattered if !self.held.is_empty() => {
                    // Later, without the others.
                    self.queue.undo_pop();
                    break;
                }
                Holding::TooScattered | Holding::Unusable => {
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

    /// Adds a buffer to those held, if it has room for a packet.
    fn hold(&mut self, chain: Chain) -> Holding {
        let head = chain.head_index();
        if self.taken.refill(chain, self.queue.size()).is_err() {
            return Holding::Unusable;
        }
        let whole = &self.taken.writable;
        let room = whole.len().saturating_sub(PacketHeader::LEN);
        if room == 0 {
            return Holding::Unusable;
        }
        let before = (self.headers.count(), self.room.count());
        let placed = self.headers.append_from(whole, 0, PacketHeader::LEN) == PacketHeader::LEN
            && self.room.append_from(whole, PacketHeader::LEN, room) == room;
        if !placed {
            self.headers.truncate(before.0);
            self.room.truncate(before.1);
            return Holding::TooScattered;
        }
        let header_vectors = self.headers.count() - before.0;
        let room_vectors = self.room.count() - before.1;
        self.held.push_back(HeldBuffer { head, room, header_vectors, room_vectors });
        Holding::Held
    }

    /// Where up to `limit` bytes of data go.
    pub(super) fn room(&mut self, limit: usize) -> &IoVecs {
        if limit >= self.room.len() {
            return &self.room;
        }
        self.limited.gather_from(&self.room, 0, limit);
        &self.limited
    }

    /// Gives packets to the guest: one with `len` bytes that are in the room, cut where a buffer ends,
    /// or one without data. Each has `header` with its own length. Returns how many packets they are.
    pub(super) fn give(&mut self, len: usize, header: PacketHeader) -> Result<usize, QueueError> {
        let (mut left, mut header_vectors, mut room_vectors) = (len, 0, 0);
        self.filled.clear();
        self.raw.clear();
        for held in &self.held {
            if left == 0 && !self.filled.is_empty() {
                break;
            }
            // At most the guest's 32-bit credit.
            let data = left.min(held.room).saturating_u32();
            self.raw.extend_from_slice(PacketHeader { len: data.into(), ..header }.as_bytes());
            left -= left.min(held.room);
            header_vectors += held.header_vectors;
            room_vectors += held.room_vectors;
            self.filled.push((held.head, data + PacketHeader::LEN as u32));
        }
        self.headers.write(0, &self.raw);
        self.held.drain(..self.filled.len());
        self.headers.drop_front(header_vectors);
        self.room.drop_front(room_vectors);
        self.queue.push_all(&self.filled)?;
        Ok(self.filled.len())
    }

    /// Interrupts the driver if it wants that.
    pub(super) fn signal(&mut self) {
        self.queue.signal();
    }
}
