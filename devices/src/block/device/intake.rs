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
use crate::block::transfer::DiskTransfer;
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
            if self.transfers.is_full() {
                active.waiting[at] = Some(Waiting::Room);
                return Ok(Progress::Done);
            }
            let queue = &mut active.queues[at];
            let Some(chain) = queue.pop().map_err(failure)? else {
                if taken == 0 {
                    BlockCounters::add(&self.shared.counters.no_avail_buffer, 1);
                }
                queue.rearm().map_err(failure)?;
                return Ok(Progress::Done);
            };
            taken += 1;
            deadline.charge(Deadline::COMMAND);
            if let Admission::Wait(until) = self.take_request(active, at, chain)? {
                BlockCounters::add(&self.shared.counters.rate_limiter_throttled_events, 1);
                active.queues[at].undo_pop();
                active.waiting[at] = Some(Waiting::Limit);
                self.timer.set_by(until);
                return Ok(Progress::Done);
            }
            if self.start_pieces(active, deadline)? == Progress::More {
                return Ok(Progress::More);
            }
        }
    }

    /// Takes one request, and completes it immediately if it needs no I/O.
    fn take_request(
        &mut self,
        active: &mut ActiveBlock,
        at: usize,
        chain: Chain,
    ) -> Result<Admission, DeviceFailure> {
        let head = chain.head_index();
        let mut parts = self.transfers.spare();
        match parts.buffer.refill(chain, QUEUE_SIZE) {
            Ok(()) if parts.buffer.writable_len() > 0 => {}
            Ok(()) => return self.bad_buffer(active, at, head, &"a request without a status byte"),
            Err(error) => return self.bad_buffer(active, at, head, &error),
        }
        let buffer = &parts.buffer;
        let request = match request::parse(&active.mem, buffer, self.disk.limits) {
            Ok(request) => request,
            Err(status) => {
                BlockCounters::add(&self.shared.counters.invalid_reqs_count, 1);
                active.answer(at, head, buffer, status).map_err(failure)?;
                return Ok(Admission::Taken);
            }
        };
        if request.operation == DiskOperation::GetId {
            let len = usize_from(request.len).min(ID_LEN);
            buffer.write(&active.mem, 0, &self.disk.id[..len]);
            active.answer(at, head, buffer, Status::Ok).map_err(failure)?;
            return Ok(Admission::Taken);
        }
        if let Err(until) = self.limiter.admit_now(limited_bytes(&request), 1) {
            return Ok(Admission::Wait(until));
        }
        let queue = active.queues[at].index();
        let mut transfer = DiskTransfer::new(queue, head, parts, request);
        transfer.durable = self.disk.cache == CacheType::Writeback
            && active.features & feature::FLUSH == 0
            && request.operation != DiskOperation::Flush
            && !matches!(request.operation, DiskOperation::Read { .. });
        // There was room before the request was taken.
        if let Some(token) = self.transfers.insert(transfer) {
            self.runnable.push_back(token);
        }
        Ok(Admission::Taken)
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
        Ok(Admission::Taken)
    }
}

/// Whether a request may go ahead.
enum Admission {
    Taken,
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
