// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the guest's buffers to the link, or to the service on this interface.

use std::io;
use std::time::Instant;

use super::handle::NetCounters;
use super::link::Link;
use super::protocol::{HEADER_LEN, MAX_FRAME};
use super::receiver::RoundEnd;
use super::responder::Responder;
use super::stream::FrameStream;
use super::tap::Tap;
use crate::virtio::{ChainMemory, Deadline, DeviceQueue, QueueError, RateLimiter};

/// Bytes of a frame that a responder checks first: Ethernet with IPv4 or ARP.
const START: usize = 60;

/// One transmit queue.
#[derive(Debug)]
pub(super) struct Transmitter {
    queue: DeviceQueue,
    /// The frame's descriptors; kept for its memory, as is the next.
    buffer: ChainMemory,
    scratch: Vec<u8>,
}

impl Transmitter {
    pub(super) fn new(queue: DeviceQueue) -> Self {
        Self { queue, buffer: ChainMemory::default(), scratch: Vec::new() }
    }

    /// Schedules another round of this queue.
    pub(super) fn kick_self(&self) {
        self.queue.kick_self();
    }

    /// Sends frames until none are left or the deadline has passed.
    pub(super) fn run(
        &mut self,
        link: &mut Link,
        mut responder: Option<&mut Box<dyn Responder>>,
        limiter: &mut RateLimiter,
        counters: &NetCounters,
        deadline: &mut Deadline,
    ) -> Result<RoundEnd, QueueError> {
        NetCounters::add(&counters.tx_queue_event_count, 1);
        let mut sent = 0u32;
        let end = loop {
            if deadline.passed() {
                break RoundEnd::Deadline;
            }
            if let Link::Stream(stream) = link
                && !stream.has_room()
                && !stream.has_ended()
            {
                // The loop comes back when the stream can be written to.
                break RoundEnd::Idle;
            }
            let Some(chain) = self.queue.pop()? else {
                if sent == 0 {
                    NetCounters::add(&counters.no_tx_avail_buffer, 1);
                }
                self.queue.rearm();
                break RoundEnd::Idle;
            };
            sent = sent.saturating_add(1);
            deadline.charge(Deadline::COMMAND);
            let head = chain.head_index();
            if self.buffer.refill(chain, self.queue.size()).is_err() {
                NetCounters::add(&counters.event_fails, 1);
                self.queue.push(head, 0)?;
                continue;
            }
            let len = self.buffer.readable.len();
            if len <= HEADER_LEN || len > MAX_FRAME {
                NetCounters::add(&counters.tx_malformed_frames, 1);
                self.queue.push(head, 0)?;
                continue;
            }
            if let Err(at) = limiter.admit_now(len as u64, 1) {
                NetCounters::add(&counters.tx_rate_limiter_throttled, 1);
                self.queue.undo_pop();
                break RoundEnd::Throttled(at);
            }
            deadline.charge(len as u64);
            let taken = responder
                .as_deref_mut()
                .is_some_and(|responder| self.offer(responder, len, deadline));
            if !taken {
                match link {
                    Link::Tap(tap) => self.send(tap, len, counters),
                    Link::Stream(stream) => self.copy(stream, len, counters),
                }
            }
            self.queue.push(head, 0)?;
        };
        if let Link::Stream(stream) = link {
            stream.flush();
        }
        self.queue.signal();
        Ok(end)
    }

    /// Passes the frame to the responder if it is addressed to it.
    fn offer(
        &mut self,
        responder: &mut Box<dyn Responder>,
        len: usize,
        deadline: &mut Deadline,
    ) -> bool {
        let frame = len - HEADER_LEN;
        self.scratch.resize(frame.min(START), 0);
        self.buffer.readable.read(HEADER_LEN, &mut self.scratch);
        if !responder.wants(&self.scratch) {
            return false;
        }
        self.scratch.resize(frame, 0);
        self.buffer.readable.read(HEADER_LEN, &mut self.scratch);
        // Checked again: the guest may have changed it.
        if responder.wants(&self.scratch) {
            responder.take(&self.scratch, Instant::now(), deadline);
        }
        true
    }

    /// Puts a copy of the frame, without its header, into the stream.
    fn copy(&mut self, stream: &mut FrameStream, len: usize, counters: &NetCounters) {
        self.scratch.resize(len - HEADER_LEN, 0);
        self.buffer.readable.read(HEADER_LEN, &mut self.scratch);
        if stream.send(&self.scratch) {
            NetCounters::add(&counters.tx_packets_count, 1);
            NetCounters::add(&counters.tx_bytes_count, len as u64);
        } else {
            NetCounters::add(&counters.tap_write_fails, 1);
        }
    }

    fn send(&mut self, tap: &Tap, len: usize, counters: &NetCounters) {
        loop {
            let since = Instant::now();
            let written = tap.write(&self.buffer.readable);
            counters.tap_write_agg.record(since.elapsed());
            match written {
                Ok(_) => {
                    NetCounters::add(&counters.tx_packets_count, 1);
                    NetCounters::add(&counters.tx_bytes_count, len as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Invalid header, full queue, or an interface that is down or removed: the frame is
                // lost, as on a wire.
                Err(_) => NetCounters::add(&counters.tap_write_fails, 1),
            }
            return;
        }
    }
}
