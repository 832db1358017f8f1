// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intake of requests from a queue: checked, admitted by the rate limit, and started or completed.

use std::time::Instant;

use mm::units::usize_from;

use super::active::{ActiveBlock, Waiting};
use super::{BlockDevice, QUEUE_SIZE, failure};
use crate::block::CacheType;
use crate::block::handle::BlockCounters;
use crate::block::protocol::{ID_LEN, Status, feature};
use crate::block::request::{self, DiskOperation, DiskRequest};
use crate::virtio::{Chain, Deadline, DeviceFailure, Progress};

impl BlockDevice {
    /// Takes requests from queue `index`, and starts them.
    pub(super) fn take_requests(
        &mut self,
        active: &mut ActiveBlock,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        let at = usize::from(index);
        if active.queues.get(at).is_none() {
            return Ok(Progress::Done);
        }
        BlockCounters::add(&self.shared.counters.queue_event_count, 1);
        let mut taken = 0u16;
        loop {
            if deadline.passed() || taken >= QUEUE_SIZE {
                return Ok(Progress::More);
            }
            let Some(token) = self.transfers.claim() else {
                active.waiting[at] = Some(Waiting::Room);
                return Ok(Progress::Done);
            };
            let queue = &mut active.queues[at];
            let Some(chain) = queue.pop().map_err(failure)? else {
                self.transfers.release(token);
                if taken == 0 {
                    BlockCounters::add(&self.shared.counters.no_avail_buffer, 1);
                }
                queue.rearm();
                return Ok(Progress::Done);
            };
            taken += 1;
            deadline.charge(Deadline::COMMAND);
            match self.take_request(active, at, token, chain)? {
                // The last piece in flight makes the event loop return.
                Admission::Begun if self.replacing.is_some() => self.runnable.push_back(token),
                Admission::Begun => {
                    if self.drive(active, token, deadline)? == Progress::More {
                        return Ok(Progress::More);
                    }
                }
                Admission::Answered => self.transfers.release(token),
                Admission::Wait(until) => {
                    self.transfers.release(token);
                    BlockCounters::add(&self.shared.counters.rate_limiter_throttled_events, 1);
                    active.queues[at].undo_pop();
                    active.waiting[at] = Some(Waiting::Limit);
                    self.timer.set_by(until);
                    return Ok(Progress::Done);
                }
            }
        }
    }

    /// Takes one request into slot `token`, and completes it immediately if it needs no I/O.
    fn take_request(
        &mut self,
        active: &mut ActiveBlock,
        at: usize,
        token: u16,
        chain: Chain,
    ) -> Result<Admission, DeviceFailure> {
        let head = chain.head_index();
        let Some(transfer) = self.transfers.get_mut(token) else { return Ok(Admission::Answered) };
        let buffer = &mut transfer.buffer;
        match buffer.refill(chain, QUEUE_SIZE) {
            Ok(()) if !buffer.writable.is_empty() => {}
            Ok(()) => return self.bad_buffer(active, at, head, &"a request without a status byte"),
            Err(error) => return self.bad_buffer(active, at, head, &error),
        }
        let request = match request::parse(buffer, self.disk.limits) {
            Ok(request) => request,
            Err(status) => {
                BlockCounters::add(&self.shared.counters.invalid_reqs_count, 1);
                active.answer(at, head, buffer, status).map_err(failure)?;
                return Ok(Admission::Answered);
            }
        };
        if request.operation == DiskOperation::GetId {
            let len = usize_from(request.len).min(ID_LEN);
            buffer.writable.write(0, &self.disk.id[..len]);
            active.answer(at, head, buffer, Status::Ok).map_err(failure)?;
            return Ok(Admission::Answered);
        }
        if let Err(until) = self.limiter.admit_now(limited_bytes(&request), 1) {
            return Ok(Admission::Wait(until));
        }
        let durable = self.disk.cache == CacheType::Writeback
            && active.features & feature::FLUSH == 0
            && request.operation != DiskOperation::Flush
            && !matches!(request.operation, DiskOperation::Read { .. });
        transfer.queue = active.queues[at].index();
        transfer.head = head;
        transfer.begin(request, *self.now.get_or_insert_with(Instant::now), durable);
        Ok(Admission::Begun)
    }

    fn bad_buffer(
        &mut self,
        active: &mut ActiveBlock,
        at: usize,
        head: u16,
        cause: &dyn std::fmt::Display,
    ) -> Result<Admission, DeviceFailure> {
        BlockCounters::add(&self.shared.counters.event_fails, 1);
        self.note(cause);
        active.queues[at].push(head, 0).map_err(failure)?;
        active.answered[at] = true;
        Ok(Admission::Answered)
    }
}

/// How far a request got when it was taken.
enum Admission {
    /// Its transfer begins.
    Begun,
    /// It is over, or was none.
    Answered,
    /// The rate limit admits it only then.
    Wait(Instant),
}

/// Bytes that a request counts for with the rate limit.
fn limited_bytes(request: &DiskRequest) -> u64 {
    match request.operation {
        DiskOperation::Read { .. } | DiskOperation::Write { .. } => request.len,
        _ => 0,
    }
}
