// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The evacuation queue, with inverted roles: the device keeps a buffer until it has a request, and
//! the reply arrives with the next buffer.

use std::sync::Arc;
use std::time::Instant;

use mm::units::{BlockId, GuestRange, SaturatingInto};
use zerocopy::{FromBytes, IntoBytes};

use super::balloon_core::BalloonCore;
use super::event_journal::EventJournal;
use super::ledger::{BlockFill, Ledger};
use super::protocol::{BLOCK_MAX, EvacuationAnswer, EvacuationRequest};
use super::requests::{Accepted, Requests};
use crate::virtio::{Deadline, DeviceQueue, GuestMemoryMmap, Progress, QueueError, Segments};

/// Asks the driver to evacuate blocks.
#[derive(Default)]
pub(super) struct EvacuationRequests {
    requests: Requests,
    /// The buffer that the next request goes into.
    buffer: Option<(u16, Segments)>,
}

impl EvacuationRequests {
    /// The host's request.
    pub(super) fn requests(&mut self) -> &mut Requests {
        &mut self.requests
    }

    /// When the first request is out of time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.requests.deadline()
    }

    /// Blocks went into the balloon: those that the outstanding request asks for are on record for
    /// its reply, and come on top of the target, or the driver would take them right back.
    pub(super) fn note_inflated(
        &mut self,
        core: &mut BalloonCore,
        blocks: &[(BlockId, GuestRange)],
    ) {
        for (block, range) in blocks {
            if self.requests.note_inflated(*block) {
                core.target.raise_surplus(range.pages());
            }
        }
    }

    /// Reads replies, keeps the last buffer for the next request and sends it. Also returns whether
    /// the driver evacuated blocks that no caller waits for any more.
    pub(super) fn process(
        &mut self,
        queue: &mut DeviceQueue,
        core: &mut BalloonCore,
        deadline: &mut Deadline,
    ) -> Result<(Progress, bool), QueueError> {
        let mut too_late = false;
        while !deadline.passed()
            && let Some(chain) = queue.pop()?
        {
            deadline.charge(Deadline::COMMAND);
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            let buffer = match Segments::collect(chain, queue.size()) {
                Ok(buffer) => buffer,
                Err(error) => {
                    core.journal.bad_buffer(error);
                    queue.push(head, 0)?;
                    continue;
                }
            };
            too_late |= self.take_reply(&mem, &buffer, &mut core.journal, deadline);
            if buffer.writable_len() < size_of::<EvacuationRequest>() as u64 {
                core.journal.bad_buffer("buffer too small for an evacuation request");
                queue.push(head, 0)?;
            } else if let Some((older, _)) = self.buffer.replace((head, buffer)) {
                queue.push(older, 0)?;
            }
        }
        self.send(queue, &core.pool.ledger)?;
        queue.rearm();
        Ok((Progress::more_if(deadline.passed()), too_late))
    }

    /// Whether the driver evacuated blocks that no caller waits for any more.
    fn take_reply(
        &mut self,
        mem: &GuestMemoryMmap,
        buffer: &Segments,
        journal: &mut EventJournal,
        deadline: &mut Deadline,
    ) -> bool {
        if buffer.readable.is_empty() {
            return false;
        }
        let mut raw = [0; size_of::<EvacuationAnswer>()];
        let got = buffer.read(mem, 0, &mut raw);
        let Ok(reply) = EvacuationAnswer::read_from_bytes(&raw[..got]) else {
            journal.bad_buffer("truncated evacuation reply");
            return false;
        };
        if reply.id.get() == 0 {
            return false;
        }
        // One more than there may be, to recognize a reply that is too long.
        let mut outcomes = [0; BLOCK_MAX as usize + 1];
        let got = buffer.read(mem, raw.len() as u64, &mut outcomes);
        deadline.charge(got as u64 * Deadline::ENTRY);
        match self.requests.reply(&reply, &outcomes[..got]) {
            Ok(Accepted { evacuated, late }) => {
                journal.counters.evacuations += 1;
                journal.counters.evacuated_blocks += evacuated;
                late && evacuated > 0
            }
            Err(error) => {
                journal.counters.evacuation_invalid_replies += 1;
                journal.warn(format_args!("invalid evacuation reply: {error}"));
                false
            }
        }
    }

    /// Sends the next request, if there is one and a buffer for it.
    pub(super) fn send(
        &mut self,
        queue: &mut DeviceQueue,
        ledger: &Ledger,
    ) -> Result<(), QueueError> {
        let in_balloon = |block| ledger.fill(block) == BlockFill::Full;
        if self.buffer.is_some()
            && let Some(request) = self.requests.next(in_balloon)
            && let Some((head, buffer)) = self.buffer.take()
        {
            let written = buffer.write(queue.mem(), 0, request.as_bytes());
            queue.push(head, written.saturating_u32())?;
        }
        queue.signal();
        Ok(())
    }

    /// Ends requests that are out of time.
    pub(super) fn expire(&mut self, now: Instant, journal: &mut EventJournal) {
        journal.counters.evacuation_fails += self.requests.expire(now);
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self, journal: &mut EventJournal) {
        self.buffer = None;
        journal.counters.evacuation_fails += self.requests.reset();
    }
}
