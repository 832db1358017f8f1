// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues that run backwards: the device keeps a buffer of the driver's until it wants
//! something, and the answer comes with the next one. Statistics, and requests to vacate blocks.

use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::device::Balloon;
use super::evacuate::Answered;
use super::ledger::Fill;
use super::protocol::{BLOCK_MAX, EvacuationAnswer, EvacuationRequest, Stat};
use super::roles::Role;
use super::stats::MAX_ENTRIES;
use crate::virtio::{DeviceQueue, GuestMemory, QueueError, Segments};

impl Balloon {
    /// Gives the statistics buffer back, which makes the driver send the next; whether it could.
    pub(super) fn return_stats_buffer(&mut self) -> bool {
        let Some(active) = &mut self.active else { return false };
        let Some(queue) = active.queue(Role::Stats) else { return false };
        let Some(head) = self.stats_buffer.take() else { return false };
        match queue.push(head, 0).and_then(|()| queue.signal()) {
            Ok(()) => true,
            Err(error) => {
                self.note(&error);
                false
            }
        }
    }

    /// Reads statistics, and keeps the buffer until the next poll.
    pub(super) fn take_statistics(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            match self.usable(Segments::collect(chain, queue.size())) {
                Some(buffer) => {
                    let mut raw = [0; MAX_ENTRIES * size_of::<Stat>()];
                    let len = buffer.read(&mem, 0, &mut raw);
                    let unknown = self.statistics.update(&raw[..len]);
                    self.pool.counters.stats_updates_count += 1;
                    self.pool.counters.stats_unknown += unknown;
                }
                None => self.pool.counters.stats_update_fails += 1,
            }
            // One is enough to poll with; a driver that sends more gets the older one back.
            if let Some(older) = self.stats_buffer.replace(head) {
                queue.push(older, 0)?;
            }
        }
        queue.finish()
    }

    /// Reads answers to requests to vacate blocks, and keeps the last buffer for the next request.
    /// Returns whether the driver has vacated blocks that nobody waits for any more.
    pub(super) fn take_answers(&mut self, queue: &mut DeviceQueue) -> Result<bool, QueueError> {
        let mut too_late = false;
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            let mem = Arc::clone(queue.mem());
            let Some(buffer) = self.usable(Segments::collect(chain, queue.size())) else {
                queue.push(head, 0)?;
                continue;
            };
            too_late |= self.take_answer(&mem, &buffer);
            if buffer.writable_len() < size_of::<EvacuationRequest>() as u64 {
                self.bad_buffer(&"no room for a request to vacate blocks");
                queue.push(head, 0)?;
            } else if let Some((older, _)) = self.evacuation_buffer.replace((head, buffer)) {
                queue.push(older, 0)?;
            }
        }
        Ok(too_late)
    }

    fn take_answer(&mut self, mem: &GuestMemory, buffer: &Segments) -> bool {
        if buffer.readable.is_empty() {
            return false;
        }
        let mut raw = [0; size_of::<EvacuationAnswer>()];
        let got = buffer.read(mem, 0, &mut raw);
        let Ok(answer) = EvacuationAnswer::read_from_bytes(&raw[..got]) else {
            self.bad_buffer(&"answer to a request to vacate blocks is cut off");
            return false;
        };
        if answer.id.get() == 0 {
            return false;
        }
        // One more than there may be, to tell an answer that is too long.
        let mut outcomes = [0; BLOCK_MAX as usize + 1];
        let got = buffer.read(mem, raw.len() as u64, &mut outcomes);
        let ledger = &self.pool.ledger;
        let in_balloon = |block| ledger.fill(block) == Fill::Full;
        match self.evacuations.answer(&answer, &outcomes[..got], in_balloon) {
            Ok(Answered { vacated, late }) => {
                self.pool.counters.evacuations += 1;
                self.pool.counters.vacated_blocks += vacated;
                late && vacated > 0
            }
            Err(lie) => {
                self.pool.counters.evacuation_lies += 1;
                self.note(&format_args!("answer to a request to vacate blocks {lie}"));
                false
            }
        }
    }

    /// Sends the next request to vacate blocks, if there is one and a buffer for it.
    pub(super) fn send_evacuation(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        if self.evacuation_buffer.is_some()
            && let Some(request) = self.evacuations.next()
            && let Some((head, buffer)) = self.evacuation_buffer.take()
        {
            let written = buffer.write(queue.mem(), 0, request.as_bytes());
            queue.push(head, u32::try_from(written).unwrap_or(0))?;
        }
        queue.signal()
    }

    /// Sends what the host has just asked for, if the driver is ready for it.
    pub(super) fn kick_evacuations(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        if let Some(queue) = active.queue(Role::Evacuations)
            && let Err(error) = self.send_evacuation(queue)
        {
            self.note(&error);
        }
        self.active = Some(active);
        self.set_timer();
    }
}
