// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Evacuation requests, from the host to the guest, and what the guest replies
//! (`docs/virtio-extensions.md`). State only; the queue is [`Evacuation`](super::evacuation)'s.
//!
//! ```text
//! request ─▶ chunks ─▶ outstanding (one) ─┬─ valid reply ─────▶ outcomes
//!                                         ├─ invalid reply ───▶ unanswered
//!            out of time, or a reset ─────┴───────────────────▶ unanswered
//! ```
//!
//! A reply is checked against the record of the request that it is for: the blocks that were in the
//! balloon whole when it was sent, and those that went in since. The balloon may have changed again
//! by the time that the reply is read, as when the host sets another target meanwhile.
//!
//! Nothing here waits for the guest. A guest that never replies delays a request by its patience.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mm::units::{BlockId, PAGES_PER_BLOCK};

use super::protocol::{BLOCK_MAX, BlockOutcome, EvacuationAnswer, EvacuationRequest};

/// What became of one block that the guest was asked to evacuate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockResult {
    /// It went into the balloon, by the device's own record.
    Evacuated,
    /// Something in it cannot be moved; nothing was given up.
    Busy,
    /// The guest has no such memory.
    NotRam,
    /// The guest did not reply in time, or its reply was invalid.
    Unanswered,
}

/// Pages that the guest says it moved, by their owner. Not verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
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

/// What came of a request.
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

/// Called once with what came of a request, on the event-loop thread and with the balloon locked:
/// send the report elsewhere, do not call the balloon.
pub type EvacuationDone = Box<dyn FnOnce(EvacuationReport) + Send>;

/// Why a reply is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidReply {
    #[error("it is for request {given}, and {expected:?} is outstanding")]
    WrongRequest { given: u64, expected: Option<u64> },
    #[error("it has {given} outcomes for {asked} blocks")]
    Outcomes { given: usize, asked: u32 },
    #[error("it counts {evacuated} blocks evacuated and {busy} busy, but lists other numbers")]
    Counts { evacuated: u32, busy: u32 },
    #[error("{block} is said to be evacuated and did not go into the balloon")]
    NotEvacuated { block: BlockId },
    #[error("unknown outcome {outcome} of {block}")]
    UnknownOutcome { block: BlockId, outcome: u8 },
}

/// A reply that agrees with the device's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Blocks evacuated.
    pub(super) evacuated: u64,
    /// No caller waits for them any more: what came after the request was given up is not part of
    /// what the driver is to have in the balloon.
    pub(super) late: bool,
}

/// All requests of one balloon.
#[derive(Default)]
pub(super) struct Requests {
    jobs: BTreeMap<u64, Job>,
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
struct Job {
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
    pub(super) fn request(
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
        self.jobs.insert(job, Job { report, blocks_left: blocks.len(), deadline, done });
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
    pub(super) fn next(
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
    pub(super) fn note_inflated(&mut self, block: BlockId) -> bool {
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
    pub(super) fn reply(
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

    /// Ends requests whose patience is over; returns how many.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let over: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| job.deadline <= now).map(|(id, _)| *id).collect();
        over.iter().for_each(|job| self.give_up(*job));
        over.len() as u64
    }

    /// When the first of them is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.jobs.values().map(|job| job.deadline).min()
    }

    /// The driver is gone: no answer will come. Returns how many requests ended.
    pub(super) fn reset(&mut self) -> u64 {
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        all.iter().for_each(|job| self.give_up(*job));
        self.outstanding = None;
        all.len() as u64
    }

    /// Ends `job` with what is known of it. A request on the wire stays outstanding, for a late
    /// answer to be told from the next one's.
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
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn request(all: &mut Requests, blocks: &[u64]) -> Receiver<EvacuationReport> {
        let (done, report) = channel();
        let blocks: Vec<BlockId> = blocks.iter().copied().map(BlockId).collect();
        all.request(&blocks, false, PATIENCE, Box::new(move |r| done.send(r).unwrap()));
        report
    }

    fn reply(id: u64, evacuated: u32, busy: u32) -> EvacuationAnswer {
        EvacuationAnswer {
            id: id.into(),
            evacuated: evacuated.into(),
            busy: busy.into(),
            migrated_lru: 10.into(),
            ..EvacuationAnswer::default()
        }
    }

    fn outcomes(report: &EvacuationReport) -> Vec<(u64, BlockResult)> {
        report.outcomes.iter().map(|(block, outcome)| (block.0, *outcome)).collect()
    }

    #[test]
    fn runs_of_blocks_go_out_one_after_the_other() {
        let mut all = Requests::default();
        let report = request(&mut all, &[3, 4, 9]);
        let first = all.next(|_| true).unwrap();
        assert_eq!((first.id.get(), first.start_pfn.get(), first.nr_blocks.get()), (1, 3 * 512, 2));
        assert!(all.next(|_| true).is_none(), "one at a time");
        assert!(all.note_inflated(BlockId(4)) && !all.note_inflated(BlockId(9)));
        let accepted = Accepted { evacuated: 1, late: false };
        assert_eq!(all.reply(&reply(1, 1, 1), &[0, 1]), Ok(accepted));
        assert!(report.try_recv().is_err());
        assert_eq!(all.next(|_| true).unwrap().start_pfn.get(), 9 * 512);
        all.reply(&reply(2, 0, 0), &[2]).unwrap();
        let report = report.try_recv().unwrap();
        assert_eq!(
            outcomes(&report),
            [(3, BlockResult::Evacuated), (4, BlockResult::Busy), (9, BlockResult::NotRam)]
        );
        assert_eq!((report.migrated.lru, report.count(BlockResult::Busy)), (20, 1));
    }

    #[test]
    fn long_runs_are_cut() {
        let mut all = Requests::default();
        let blocks: Vec<u64> = (100..100 + u64::from(BLOCK_MAX) + 5).collect();
        let _report = request(&mut all, &blocks);
        assert_eq!(all.next(|_| true).unwrap().nr_blocks.get(), BLOCK_MAX);
        all.reply(&reply(1, 0, BLOCK_MAX), &[1; BLOCK_MAX as usize]).unwrap();
        assert_eq!(all.next(|_| true).unwrap().nr_blocks.get(), 5);
    }

    #[test]
    fn invalid_replies_end_the_request() {
        for (id, evacuated, busy, raw, in_balloon) in [
            (2, 1, 1, &[0, 1][..], true),
            (1, 2, 0, &[0, 1][..], true),
            (1, 1, 1, &[0][..], true),
            (1, 1, 1, &[0, 1][..], false),
            (1, 1, 1, &[0, 7][..], true),
            (0, 0, 0, &[][..], true),
            (1, u32::MAX, u32::MAX, &[0, 1][..], true),
        ] {
            let mut all = Requests::default();
            let report = request(&mut all, &[5, 6]);
            all.next(|_| in_balloon).unwrap();
            assert!(all.reply(&reply(id, evacuated, busy), raw).is_err());
            let report = report.try_recv().unwrap();
            assert_eq!(report.count(BlockResult::Unanswered), 2);
            assert_eq!(report.migrated, Migrated::default());
            assert!(all.next(|_| true).is_none());
        }
    }

    #[test]
    fn reply_is_checked_against_what_was_in_the_balloon_since_its_request_was_sent() {
        let mut all = Requests::default();
        let report = request(&mut all, &[5, 6, 7]);
        // Block 5 was in the balloon before, block 6 goes in now; both may be gone by the reply.
        all.next(|block| block == BlockId(5)).unwrap();
        assert!(all.note_inflated(BlockId(6)));
        all.reply(&reply(1, 2, 1), &[0, 0, 1]).unwrap();
        assert_eq!(report.try_recv().unwrap().count(BlockResult::Evacuated), 2);
        let _report = request(&mut all, &[6]);
        all.next(|_| false).unwrap();
        let invalid = InvalidReply::NotEvacuated { block: BlockId(6) };
        assert_eq!(all.reply(&reply(2, 1, 0), &[0]), Err(invalid), "the record was of request 1");
    }

    #[test]
    fn reply_to_no_request_is_invalid() {
        let mut all = Requests::default();
        let invalid = InvalidReply::WrongRequest { given: 1, expected: None };
        assert_eq!(all.reply(&reply(1, 0, 0), &[]), Err(invalid));
    }

    #[test]
    fn guest_that_never_replies_delays_a_request_by_its_patience() {
        let mut all = Requests::default();
        let first = request(&mut all, &[5, 9]);
        all.next(|_| true).unwrap();
        let now = Instant::now();
        assert_eq!(all.expire(now), 0);
        assert!(all.deadline().is_some());
        assert_eq!(all.expire(now + PATIENCE * 2), 1);
        assert_eq!(first.try_recv().unwrap().count(BlockResult::Unanswered), 2);
        assert_eq!(all.deadline(), None);
        // Its late reply is not taken for the next one's, and the next one goes out then.
        let second = request(&mut all, &[7]);
        assert!(all.next(|_| true).is_none());
        assert!(!all.note_inflated(BlockId(5)), "it comes too late to stay");
        let accepted = Accepted { evacuated: 1, late: true };
        assert_eq!(all.reply(&reply(1, 1, 0), &[0]), Ok(accepted));
        assert_eq!(all.next(|_| true).unwrap().id.get(), 2);
        all.reply(&reply(2, 1, 0), &[0]).unwrap();
        assert_eq!(second.try_recv().unwrap().count(BlockResult::Evacuated), 1);
    }

    #[test]
    fn a_reset_ends_everything_and_ids_go_on() {
        let mut all = Requests::default();
        let reports = [request(&mut all, &[1]), request(&mut all, &[2])];
        all.next(|_| true).unwrap();
        assert_eq!(all.reset(), 2);
        for report in reports {
            assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 1);
        }
        assert!(all.next(|_| true).is_none());
        let _report = request(&mut all, &[3]);
        assert_eq!(all.next(|_| true).unwrap().id.get(), 2);
    }

    #[test]
    fn a_request_for_nothing_is_answered_at_once() {
        let mut all = Requests::default();
        assert_eq!(request(&mut all, &[]).try_recv().unwrap().outcomes, []);
    }
}
