// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the link into the guest's buffers.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use mm::units::SaturatingInto;

use super::handle::NetCounters;
use super::link::Link;
use super::protocol::{HEADER_LEN, MAX_FRAME, NUM_BUFFERS, feature};
use super::responder::Responder;
use super::stream::FrameStream;
use super::tap::Tap;
use crate::virtio::{
    Chain, ChainMemory, Deadline, DeviceQueue, IoVecs, Progress, QueueError, RateLimiter,
};

/// Longest frame without segmentation offloads, with room for two VLAN tags.
const PLAIN_FRAME: usize = 1522;

/// A guest buffer that was taken from the queue and waits for a frame.
#[derive(Debug)]
struct Posted {
    head: u16,
    len: usize,
    /// How many of the receiver's vectors are its.
    vectors: usize,
}

/// Why a round of receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundEnd {
    /// No frame is left, or the guest has no buffer for the next one.
    Idle,
    /// The deadline has passed.
    Deadline,
    /// The rate limit admits the next frame only then.
    Throttled(Instant),
}

/// Whether a frame fits in the buffers that were taken from the queue.
enum BufferRoom {
    Enough,
    /// The guest has no further buffer.
    NoBuffer,
    /// The deadline has passed first.
    Later,
}

/// What came of receiving one frame.
enum ReceivedFrame {
    /// A frame of this many bytes, with its header.
    Whole(usize),
    /// The link has no frame, or the guest no buffer for it.
    Nothing,
    /// The deadline has passed first.
    Later,
}

impl RoundEnd {
    pub(super) fn progress(self) -> Progress {
        Progress::more_if(self == Self::Deadline)
    }
}

/// One receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    queue: DeviceQueue,
    /// A frame may be spread over several buffers.
    mergeable: bool,
    /// Room needed before a frame is taken: a TAP would cut off what does not fit.
    wanted: usize,
    posted: VecDeque<Posted>,
    /// Bytes in `posted`.
    room: usize,
    /// All of `posted`. What one frame leaves over is kept for the next one.
    iovecs: IoVecs,
    /// The buffer taken last; kept for its memory.
    buffer: ChainMemory,
    /// Buffers that a frame fills; kept for its memory.
    filled: Vec<(u16, u32)>,
}

impl Receiver {
    pub(super) fn new(queue: DeviceQueue, features: u64) -> Self {
        let mergeable = features & feature::MRG_RXBUF != 0;
        let large = feature::GUEST_TSO4 | feature::GUEST_TSO6;
        let wanted = match (mergeable, features & large != 0) {
            // The driver's buffers are each as large as its features ask for (5.1.6.3.1).
            (false, _) => 1,
            (true, true) => MAX_FRAME,
            (true, false) => HEADER_LEN + PLAIN_FRAME,
        };
        Self {
            queue,
            mergeable,
            wanted,
            posted: VecDeque::new(),
            room: 0,
            iovecs: IoVecs::default(),
            buffer: ChainMemory::default(),
            filled: Vec::new(),
        }
    }

    /// Schedules another round of this queue.
    pub(super) fn kick_self(&self) {
        self.queue.kick_self();
    }

    /// Receives frames until none are left, there is no room, or the deadline has passed.
    pub(super) fn run(
        &mut self,
        link: &mut Link,
        mut responder: Option<&mut Box<dyn Responder>>,
        limiter: &mut RateLimiter,
        counters: &NetCounters,
        deadline: &mut Deadline,
    ) -> Result<RoundEnd, QueueError> {
        NetCounters::add(&counters.rx_queue_event_count, 1);
        let mut frame = Vec::new();
        let end = loop {
            if deadline.passed() {
                break RoundEnd::Deadline;
            }
            deadline.charge(Deadline::COMMAND);
            match self.make_room(self.wanted, counters, deadline)? {
                BufferRoom::Enough => {}
                BufferRoom::Later => break RoundEnd::Deadline,
                BufferRoom::NoBuffer => {
                    NetCounters::add(&counters.no_rx_avail_buffer, 1);
                    break RoundEnd::Idle;
                }
            }
            if let Some(responder) = responder.as_deref_mut()
                && responder.give(&mut frame, Instant::now(), deadline)
            {
                self.deliver(&frame, counters)?;
                continue;
            }
            // The size is known only afterwards: the rest is paid off then.
            if let Err(at) = limiter.admit_now(1, 1) {
                NetCounters::add(&counters.rx_rate_limiter_throttled, 1);
                break RoundEnd::Throttled(at);
            }
            let taken = match link {
                Link::Tap(tap) => self.read(tap, counters)?,
                Link::Stream(stream) => self.copy(stream, counters, deadline)?,
            };
            match taken {
                ReceivedFrame::Whole(len) => {
                    limiter.charge(len.saturating_sub(1) as u64, 0);
                    deadline.charge(len as u64);
                }
                ReceivedFrame::Nothing => {
                    limiter.refund(1, 1);
                    break RoundEnd::Idle;
                }
                ReceivedFrame::Later => {
                    limiter.refund(1, 1);
                    break RoundEnd::Deadline;
                }
            }
        };
        self.queue.signal();
        Ok(end)
    }

    /// Has the TAP write its next frame into the buffers.
    fn read(&mut self, tap: &Tap, counters: &NetCounters) -> Result<ReceivedFrame, QueueError> {
        loop {
            match tap.read(&self.iovecs) {
                Ok(len) => {
                    self.used(len, counters)?;
                    return Ok(ReceivedFrame::Whole(len));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        NetCounters::add(&counters.tap_read_fails, 1);
                    }
                    return Ok(ReceivedFrame::Nothing);
                }
            }
        }
    }

    /// Copies the stream's next frame into the buffers.
    fn copy(
        &mut self,
        stream: &mut FrameStream,
        counters: &NetCounters,
        deadline: &mut Deadline,
    ) -> Result<ReceivedFrame, QueueError> {
        let Some(frame) = stream.peek() else { return Ok(ReceivedFrame::Nothing) };
        let len = HEADER_LEN + frame.len();
        // One buffer is all that a frame gets if buffers are not merged.
        if self.mergeable {
            match self.make_room(len, counters, deadline)? {
                BufferRoom::Enough => {}
                BufferRoom::Later => return Ok(ReceivedFrame::Later),
                BufferRoom::NoBuffer => {
                    NetCounters::add(&counters.no_rx_avail_buffer, 1);
                    return Ok(ReceivedFrame::Nothing);
                }
            }
        }
        self.deliver(frame, counters)?;
        stream.consume();
        Ok(ReceivedFrame::Whole(len))
    }

    /// Takes buffers from the queue until a frame of `wanted` bytes fits. Takes at least one before
    /// it gives way to the deadline, so that each round makes progress.
    fn make_room(
        &mut self,
        wanted: usize,
        counters: &NetCounters,
        deadline: &mut Deadline,
    ) -> Result<BufferRoom, QueueError> {
        let (mut asked, mut scattered, mut popped) = (false, false, false);
        while self.room < wanted {
            if popped && deadline.passed() {
                return Ok(BufferRoom::Later);
            }
            let Some(chain) = self.queue.pop()? else {
                if asked {
                    break;
                }
                // Notifications are on from now on; a buffer added in between notifies immediately.
                self.queue.rearm();
                asked = true;
                continue;
            };
            popped = true;
            deadline.charge(Deadline::COMMAND);
            let head = chain.head_index();
            match self.usable(chain) {
                Some(len) => {
                    let before = self.iovecs.count();
                    if self.iovecs.append_from(&self.buffer.writable, 0, len) < len {
                        // More vectors than one call takes: what is there has to do.
                        self.iovecs.truncate(before);
                        self.queue.undo_pop();
                        scattered = true;
                        break;
                    }
                    self.room += len;
                    let vectors = self.iovecs.count() - before;
                    self.posted.push_back(Posted { head, len, vectors });
                }
                None => {
                    NetCounters::add(&counters.event_fails, 1);
                    self.queue.push(head, 0)?;
                }
            }
        }
        // A guest whose whole queue is smaller than the longest frame must not starve.
        let all_given = scattered || self.posted.len() >= usize::from(self.queue.size());
        let enough = self.room >= wanted || (all_given && self.room >= HEADER_LEN + PLAIN_FRAME);
        Ok(if enough { BufferRoom::Enough } else { BufferRoom::NoBuffer })
    }

    /// The room in a buffer, which is then in `buffer`, if it can be used.
    fn usable(&mut self, chain: Chain) -> Option<usize> {
        self.buffer.refill(chain, self.queue.size()).ok()?;
        let len = self.buffer.writable.len();
        // The header must lie in one buffer (5.1.6.3.1).
        (len > HEADER_LEN).then_some(len)
    }

    /// A frame of the responder's, without a header.
    fn deliver(&mut self, frame: &[u8], counters: &NetCounters) -> Result<(), QueueError> {
        let len = HEADER_LEN + frame.len();
        if len > self.room {
            NetCounters::add(&counters.rx_fails, 1);
            return Ok(());
        }
        self.iovecs.write(0, &[0; HEADER_LEN]);
        self.iovecs.write(HEADER_LEN, frame);
        self.used(len, counters)
    }

    /// Returns the buffers that a frame of `len` bytes fills.
    fn used(&mut self, len: usize, counters: &NetCounters) -> Result<(), QueueError> {
        NetCounters::add(&counters.rx_packets_count, 1);
        NetCounters::add(&counters.rx_bytes_count, len as u64);
        let mut left = len;
        let mut vectors = 0;
        self.filled.clear();
        for posted in &self.posted {
            if left == 0 && !self.filled.is_empty() {
                break;
            }
            let written = left.min(posted.len);
            left -= written;
            self.room -= posted.len;
            vectors += posted.vectors;
            self.filled.push((posted.head, written.saturating_u32()));
        }
        let buffers = if self.mergeable { self.filled.len().saturating_u16() } else { 1 };
        // The header is at the front, wherever the guest has cut its first buffer.
        self.iovecs.write(NUM_BUFFERS, &buffers.to_le_bytes());
        self.posted.drain(..self.filled.len());
        self.iovecs.drop_front(vectors);
        // All at once (5.1.6.4): a driver that finds some of a frame's buffers takes it for broken.
        self.queue.push_all(&self.filled)
    }
}
