// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests in flight: their pieces started and collected, until they are over.

use std::time::{Duration, Instant};

use super::active::{ActiveBlock, Waiting};
use super::{BlockDevice, failure};
use crate::block::disk_engine::{DiskAction, Started};
use crate::block::handle::BlockCounters;
use crate::block::protocol::{SECTOR, Status};
use crate::block::request::{DiskOperation, DiskRequest};
use crate::block::transfer::TransferStep;
use crate::virtio::{Deadline, DeviceFailure, Progress};

impl BlockDevice {
    /// Collects completed pieces; returns whether there were any.
    pub(super) fn reap(&mut self, active: &mut ActiveBlock) -> Result<bool, DeviceFailure> {
        self.now = None;
        let mut any = false;
        while let Some((token, result)) = self.disk.engine.reap() {
            self.under_way -= 1;
            any = true;
            self.ended(active, token, result)?;
        }
        self.replace_when_settled(Some(active));
        Ok(any)
    }

    fn ended(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        result: std::io::Result<u64>,
    ) -> Result<(), DeviceFailure> {
        let Some(transfer) = self.transfers.get_mut(token) else { return Ok(()) };
        match result {
            Ok(bytes) => {
                transfer.advance(bytes);
                self.runnable.push_back(token);
                Ok(())
            }
            Err(error) => self.fail(active, token, &error),
        }
    }

    /// The host failed a piece of `token`.
    fn fail(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        error: &std::io::Error,
    ) -> Result<(), DeviceFailure> {
        BlockCounters::add(&self.shared.counters.execute_fails, 1);
        if let Some(transfer) = self.transfers.get_mut(token) {
            let operation = transfer.request.operation;
            self.note(&format_args!("{operation:?} failed: {error}"));
        }
        self.finish(active, token, Status::IoErr)
    }

    /// Moves each transfer on that has no piece in flight.
    pub(super) fn start_pieces(
        &mut self,
        active: &mut ActiveBlock,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        if self.replacing.is_some() {
            // The last piece in flight makes the event loop return.
            return Ok(Progress::Done);
        }
        while let Some(token) = self.runnable.pop_front() {
            if self.drive(active, token, deadline)? == Progress::More {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done)
    }

    /// Moves the transfer of `token` on until a piece of it is in flight, it is over, or the deadline
    /// has passed: then it is the first of the next round.
    pub(super) fn drive(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        let size = self.disk.limits.sectors * SECTOR;
        let limit = self.disk.engine.piece_limit();
        loop {
            let Some(transfer) = self.transfers.get_mut(token) else { return Ok(Progress::Done) };
            let status = match transfer.prepare(limit, size) {
                TransferStep::Piece { .. } if deadline.passed() => {
                    self.runnable.push_front(token);
                    return Ok(Progress::More);
                }
                TransferStep::Piece { action, offset, len } => {
                    deadline.charge(cost(action, len, self.disk.engine.works_at_once(action)));
                    let piece = transfer.piece(action, offset, len);
                    // SAFETY: the transfer stays in its slot, untouched, until `reap` has named its
                    // token, and so do the vectors in it; `reset` and `drop` wait for that, or leak
                    // it.
                    match unsafe { self.disk.engine.start(token, piece) } {
                        Started::UnderWay => self.under_way += 1,
                        Started::Done(Ok(bytes)) => {
                            transfer.advance(bytes);
                            // It took time. The next request begins when this one ends.
                            self.now = None;
                            continue;
                        }
                        Started::Done(Err(error)) => self.fail(active, token, &error)?,
                    }
                    return Ok(Progress::Done);
                }
                TransferStep::Finished => Status::Ok,
                TransferStep::Impossible => Status::IoErr,
            };
            self.finish(active, token, status)?;
            return Ok(Progress::Done);
        }
    }

    /// Completes the request of `token` and drops it.
    fn finish(
        &mut self,
        active: &mut ActiveBlock,
        token: u16,
        status: Status,
    ) -> Result<(), DeviceFailure> {
        let now = self.now();
        let Some(transfer) = self.transfers.get_mut(token) else { return Ok(()) };
        let counters = &self.shared.counters;
        let took =
            transfer.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        match transfer.request.operation {
            DiskOperation::Read { .. } => counters.read_agg.record(took),
            DiskOperation::Write { .. } => counters.write_agg.record(took),
            _ => {}
        }
        let at = usize::from(transfer.queue);
        active.answer(at, transfer.head, &transfer.buffer, status).map_err(failure)?;
        let request = transfer.request;
        if status == Status::Ok {
            self.count(&request);
        }
        if self.transfers.is_full() {
            active.wake(Waiting::Room);
        }
        self.transfers.release(token);
        Ok(())
    }

    /// The time, read once for all requests that were waited for together.
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    fn count(&self, request: &DiskRequest) {
        let counters = &self.shared.counters;
        let (count, bytes) = match request.operation {
            DiskOperation::Read { .. } => (&counters.read_count, Some(&counters.read_bytes)),
            DiskOperation::Write { .. } => (&counters.write_count, Some(&counters.write_bytes)),
            DiskOperation::Flush => (&counters.flush_count, None),
            DiskOperation::Discard { .. } | DiskOperation::WriteZeroes { .. } => {
                (&counters.discard_count, None)
            }
            DiskOperation::GetId => return,
        };
        BlockCounters::add(count, 1);
        if let Some(bytes) = bytes {
            BlockCounters::add(bytes, request.len);
        }
    }
}

/// Cost of starting a piece, in units of [`Deadline`].
fn cost(action: DiskAction, len: u64, works_at_once: bool) -> u64 {
    match (works_at_once, action) {
        (false, _) => Deadline::ENTRY,
        (true, DiskAction::Read | DiskAction::Write) => len,
        (true, _) => Deadline::SYSCALL,
    }
}
