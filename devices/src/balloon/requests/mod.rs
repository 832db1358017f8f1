// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Evacuation requests from the host to the guest, and the guest's replies
//! (`docs/virtio-extensions.md`). State only; the queue belongs to
//! [`EvacuationRequests`](super::evacuation).
//!
//! ```text
//! request ─▶ chunks ─▶ outstanding (one) ─┬─ valid reply ─────▶ outcomes
//!                                         ├─ invalid reply ───▶ unanswered
//!            out of time, or a reset ─────┴───────────────────▶ unanswered
//! ```
//!
//! A reply is checked against the record of its request: the blocks that were entirely in the
//! balloon when it was sent, and those that went in since. The balloon may have changed again by
//! the time the reply is read, for example if the host has set another target.
//!
//! Nothing here waits for the guest. A guest that never replies delays a request by its patience.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mm::units::{BlockId, PAGES_PER_BLOCK};

use crate::balloon::protocol::{BLOCK_MAX, BlockOutcome, EvacuationAnswer, EvacuationRequest};

/// Result for one block that the guest was asked to evacuate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockResult {
    /// It went into the balloon, by the device's own record.
    Evacuated,
    /// A page in it cannot be moved; the block was not given up.
    Busy,
    /// The guest has no such memory.
    NotRam,
    /// The guest did not reply in time, or its reply was invalid.
    Unanswered,
}

/// Pages that the guest says it moved, by their owner. Not verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Of processes and of the page cache.
    pub lru: u64,
    /// Of the balloon.
    pub balloon: u64,
    /// Of compressed memory.
    pub zsmalloc: u64,
    /// Of GPU resources.
    pub gpu: u64,
}

/// Result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvacuationReport {
    /// Each block that was asked for, in ascending order.
    pub outcomes: Vec<(BlockId, BlockResult)>,
    /// Pages moved for it.
    pub migrated: Migrated,
}

impl EvacuationReport {
    /// How many blocks had `outcome`.
    pub fn count(&self, outcome: BlockResult) -> usize {
        self.outcomes.iter().filter(|(_, other)| *other == outcome).count()
    }
}

/// Called once with the result of a request, on the event-loop thread and with the balloon locked:
/// pass the report on and do not call the balloon.
pub type EvacuationDone = Box<dyn FnOnce(EvacuationReport) + Send>;

/// Why a reply is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::balloon) enum InvalidReply {
    #[error("reply to request {given}, but the outstanding request is {expected:?}")]
    WrongRequest { given: u64, expected: Option<u64> },
    #[error("{given} outcomes for {asked} blocks")]
    Outcomes { given: usize, asked: u32 },
    #[error("the counts ({evacuated} evacuated, {busy} busy) do not match the listed outcomes")]
    Counts { evacuated: u32, busy: u32 },
    #[error("{block} is reported as evacuated but is not in the balloon")]
    NotEvacuated { block: BlockId },
    #[error("unknown outcome {outcome} of {block}")]
    UnknownOutcome { block: BlockId, outcome: u8 },
}

/// A reply that agrees with the device's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::balloon) struct Accepted {
    /// Blocks evacuated.
    pub(in crate::balloon) evacuated: u64,
    /// No caller waits for them any more: blocks that arrive after their request was given up do
    /// not count towards the driver's goal.
    pub(in crate::balloon) late: bool,
}

/// All requests of one balloon.
#[derive(Default)]
pub(in crate::balloon) struct Requests {
    jobs: BTreeMap<u64, HostRequest>,
    chunks: VecDeque<Chunk>,
    outstanding: Option<Outstanding>,
    last_id: u64,
    last_job: u64,
}

/// The request on the wire.
struct Outstanding {
    id: u64,
    chunk: Chunk,
    /// Blocks of it that are or were in the balloon whole since it was sent.
    given: BTreeSet<BlockId>,
}

/// One request of the host's.
struct HostRequest {
    report: EvacuationReport,
    blocks_left: usize,
    deadline: Instant,
    done: EvacuationDone,
}

/// A run of blocks of a job: one request on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    job: u64,
    start: BlockId,
    blocks: u32,
    sync: bool,
}

impl Chunk {
    fn iter(self) -> impl Iterator<Item = BlockId> {
        (self.start.0..).take(self.blocks as usize).map(BlockId)
    }

    fn contains(self, block: BlockId) -> bool {
        block.0.checked_sub(self.start.0).is_some_and(|at| at < self.blocks.into())
    }
}

impl Requests {
    /// A new request; `blocks` ascending, each once.
    pub(in crate::balloon) fn request(
        &mut self,
        blocks: &[BlockId],
        sync: bool,
        patience: Duration,
        done: EvacuationDone,
    ) {
        let report = EvacuationReport { outcomes: Vec::new(), migrated: Migrated::default() };
        if blocks.is_empty() {
            return done(report);
        }
        self.last_job += 1;
        let job = self.last_job;
        let deadline = Instant::now() + patience;
        self.jobs.insert(job, HostRequest { report, blocks_left: blocks.len(), deadline, done });
        let mut runs: Vec<Chunk> = Vec::new();
        for block in blocks {
            match runs.last_mut() {
                Some(run)
                    if run.blocks < BLOCK_MAX
                        && run.start.0.checked_add(run.blocks.into()) == Some(block.0) =>
                {
                    run.blocks += 1;
                }
                _ => runs.push(Chunk { job, start: *block, blocks: 1, sync }),
            }
        }
        self.chunks.extend(runs);
    }

    /// The request to send next, if none is outstanding. It is outstanding from then on;
    /// `in_balloon` says which blocks are in the balloon whole at this moment.
    pub(in crate::balloon) fn next(
        &mut self,
        in_balloon: impl Fn(BlockId) -> bool,
    ) -> Option<EvacuationRequest> {
        if self.outstanding.is_some() {
            return None;
        }
        let chunk = self.chunks.pop_front()?;
        self.last_id += 1;
        let id = self.last_id;
        let given = chunk.iter().filter(|block| in_balloon(*block)).collect();
        self.outstanding = Some(Outstanding { id, chunk, given });
        Some(EvacuationRequest {
            id: id.into(),
            start_pfn: (chunk.start.0 * PAGES_PER_BLOCK).into(),
            nr_blocks: chunk.blocks.into(),
            flags: if chunk.sync { EvacuationRequest::SYNC } else { 0 }.into(),
        })
    }

    /// `block` went into the balloon whole; whether the outstanding request asks for it and a caller
    /// still waits for that.
    pub(in crate::balloon) fn note_inflated(&mut self, block: BlockId) -> bool {
        match &mut self.outstanding {
            Some(outstanding) if outstanding.chunk.contains(block) => {
                outstanding.given.insert(block);
                self.jobs.contains_key(&outstanding.chunk.job)
            }
            _ => false,
        }
    }

    /// The guest replies.
    ///
    /// # Errors
    ///
    /// Why the reply is invalid; the outstanding request has ended without an answer then.
    pub(in crate::balloon) fn reply(
        &mut self,
        reply: &EvacuationAnswer,
        outcomes: &[u8],
    ) -> Result<Accepted, InvalidReply> {
        let given = reply.id.get();
        let Some(outstanding) = self.outstanding.take() else {
            return Err(InvalidReply::WrongRequest { given, expected: None });
        };
        let chunk = outstanding.chunk;
        match check(&outstanding, reply, outcomes) {
            Ok(outcomes) => {
                let late = !self.jobs.contains_key(&chunk.job);
                if let Some(job) = self.jobs.get_mut(&chunk.job) {
                    let moved = &mut job.report.migrated;
                    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
                    add(&mut moved.lru, reply.migrated_lru.get());
                    add(&mut moved.balloon, reply.migrated_balloon.get());
                    add(&mut moved.zsmalloc, reply.migrated_zsmalloc.get());
                    add(&mut moved.gpu, reply.migrated_gpu.get());
                }
                self.finish(chunk, outcomes.into_iter());
                Ok(Accepted { evacuated: reply.evacuated.get().into(), late })
            }
            Err(invalid) => {
                self.finish(chunk, std::iter::repeat(BlockResult::Unanswered));
                Err(invalid)
            }
        }
    }

    /// Ends requests that have timed out; returns how many.
    pub(in crate::balloon) fn expire(&mut self, now: Instant) -> u64 {
        let over: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| job.deadline <= now).map(|(id, _)| *id).collect();
        over.iter().for_each(|job| self.give_up(*job));
        over.len() as u64
    }

    /// When the first of them is over.
    pub(in crate::balloon) fn deadline(&self) -> Option<Instant> {
        self.jobs.values().map(|job| job.deadline).min()
    }

    /// The driver was reset: no reply will arrive. Returns the number of requests ended.
    pub(in crate::balloon) fn reset(&mut self) -> u64 {
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        all.iter().for_each(|job| self.give_up(*job));
        self.outstanding = None;
        all.len() as u64
    }

    /// Ends `job` with its results so far. A request on the wire stays outstanding, so that a late
    /// reply is not mistaken for the next one's.
    fn give_up(&mut self, job: u64) {
        let on_the_wire = self.outstanding.as_ref().map(|outstanding| outstanding.chunk);
        let waiting: Vec<Chunk> =
            self.chunks.iter().chain(&on_the_wire).copied().filter(|c| c.job == job).collect();
        self.chunks.retain(|chunk| chunk.job != job);
        for chunk in waiting {
            self.finish(chunk, std::iter::repeat(BlockResult::Unanswered));
        }
    }

    /// Enters the outcomes of a chunk; with the last chunk of its job, reports.
    fn finish(&mut self, chunk: Chunk, outcomes: impl Iterator<Item = BlockResult>) {
        let Some(job) = self.jobs.get_mut(&chunk.job) else { return };
        let before = job.report.outcomes.len();
        job.report.outcomes.extend(chunk.iter().zip(outcomes));
        job.blocks_left -= job.report.outcomes.len() - before;
        if job.blocks_left == 0
            && let Some(mut job) = self.jobs.remove(&chunk.job)
        {
            job.report.outcomes.sort_unstable_by_key(|(block, _)| *block);
            (job.done)(job.report);
        }
    }
}

/// The outcomes that a valid reply has, block by block.
fn check(
    outstanding: &Outstanding,
    reply: &EvacuationAnswer,
    outcomes: &[u8],
) -> Result<Vec<BlockResult>, InvalidReply> {
    let Outstanding { id, chunk, given: in_balloon } = outstanding;
    let given = reply.id.get();
    if given != *id {
        return Err(InvalidReply::WrongRequest { given, expected: Some(*id) });
    }
    if outcomes.len() != chunk.blocks as usize {
        return Err(InvalidReply::Outcomes { given: outcomes.len(), asked: chunk.blocks });
    }
    let mut checked = Vec::with_capacity(outcomes.len());
    for (block, raw) in chunk.iter().zip(outcomes) {
        checked.push(match BlockOutcome::from(*raw) {
            BlockOutcome::Evacuated if in_balloon.contains(&block) => BlockResult::Evacuated,
            BlockOutcome::Evacuated => return Err(InvalidReply::NotEvacuated { block }),
            BlockOutcome::Busy => BlockResult::Busy,
            BlockOutcome::NotRam => BlockResult::NotRam,
            BlockOutcome::Unsupported(outcome) => {
                return Err(InvalidReply::UnknownOutcome { block, outcome });
            }
        });
    }
    let count = |wanted| checked.iter().filter(|outcome| **outcome == wanted).count() as u64;
    let (evacuated, busy) = (reply.evacuated.get(), reply.busy.get());
    if (count(BlockResult::Evacuated), count(BlockResult::Busy)) != (evacuated.into(), busy.into())
    {
        return Err(InvalidReply::Counts { evacuated, busy });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests;
