// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests to vacate blocks, from the host to the guest, and what the guest answers
//! (`docs/virtio-extensions.md`). State only; the queue is the device's.
//!
//! ```text
//! request ─▶ chunks ─▶ outstanding (one) ─┬─ answer, checked ─▶ outcomes
//!                                         ├─ answer that lies ─▶ unanswered
//!            patience over, or a reset ───┴───────────────────▶ unanswered
//! ```
//!
//! Nothing here waits for the guest. One that never answers costs a request its patience.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use mm::units::{BlockId, PAGES_PER_BLOCK};

use super::protocol::{BLOCK_MAX, BlockOutcome, EvacuationAnswer, EvacuationRequest};

/// What became of one block that the guest was asked to vacate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is in the balloon, by the device's own record.
    Vacated,
    /// Something in it cannot be moved; nothing was given up.
    Busy,
    /// The guest has no such memory.
    NotRam,
    /// The guest did not answer in time, or not truthfully.
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
    pub outcomes: Vec<(BlockId, Outcome)>,
    /// Pages moved for it.
    pub migrated: Migrated,
}

impl EvacuationReport {
    /// How many blocks had `outcome`.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.iter().filter(|(_, other)| *other == outcome).count()
    }
}

/// Called once with what came of a request, on the event-loop thread and with the balloon locked:
/// send the report elsewhere, do not call the balloon.
pub type EvacuationDone = Box<dyn FnOnce(EvacuationReport) + Send>;

/// An answer that the device does not believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lie {
    #[error("answers request {given} where {expected:?} is outstanding")]
    WrongRequest { given: u64, expected: Option<u64> },
    #[error("has {given} outcomes for {asked} blocks")]
    Outcomes { given: usize, asked: u32 },
    #[error("counts {vacated} blocks vacated, {busy} busy, and lists others")]
    Counts { vacated: u32, busy: u32 },
    #[error("says {what} of {block}")]
    Block { block: BlockId, what: &'static str },
}

/// An answer that agrees with the device's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// Blocks vacated.
    pub(super) vacated: u64,
    /// Nobody waits for them any more: what came after the request was given up is not part of
    /// what the driver is to have in the balloon.
    pub(super) late: bool,
}

/// All requests of one balloon.
#[derive(Default)]
pub(super) struct Evacuations {
    jobs: BTreeMap<u64, Job>,
    chunks: VecDeque<Chunk>,
    outstanding: Option<(u64, Chunk)>,
    last_id: u64,
    last_job: u64,
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
}

impl Evacuations {
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

    /// The request to send next, if none is outstanding. It is outstanding from then on.
    pub(super) fn next(&mut self) -> Option<EvacuationRequest> {
        if self.outstanding.is_some() {
            return None;
        }
        let chunk = self.chunks.pop_front()?;
        self.last_id += 1;
        self.outstanding = Some((self.last_id, chunk));
        Some(EvacuationRequest {
            id: self.last_id.into(),
            start_pfn: (chunk.start.0 * PAGES_PER_BLOCK).into(),
            nr_blocks: chunk.blocks.into(),
            flags: if chunk.sync { EvacuationRequest::SYNC } else { 0 }.into(),
        })
    }

    /// Whether `block` is part of the outstanding request, and somebody still waits for it: given
    /// up now, it is given for that.
    pub(super) fn asks_for(&self, block: BlockId) -> bool {
        self.outstanding.is_some_and(|(_, chunk)| {
            self.jobs.contains_key(&chunk.job) && chunk.iter().any(|other| other == block)
        })
    }

    /// The guest answers; `in_balloon` is the device's own record.
    pub(super) fn answer(
        &mut self,
        answer: &EvacuationAnswer,
        outcomes: &[u8],
        in_balloon: impl Fn(BlockId) -> bool,
    ) -> Result<Answered, Lie> {
        let given = answer.id.get();
        let Some((id, chunk)) = self.outstanding.take() else {
            return Err(Lie::WrongRequest { given, expected: None });
        };
        match check(id, chunk, answer, outcomes, in_balloon) {
            Ok(outcomes) => {
                let late = !self.jobs.contains_key(&chunk.job);
                if let Some(job) = self.jobs.get_mut(&chunk.job) {
                    let moved = &mut job.report.migrated;
                    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
                    add(&mut moved.lru, answer.migrated_lru.get());
                    add(&mut moved.balloon, answer.migrated_balloon.get());
                    add(&mut moved.zsmalloc, answer.migrated_zsmalloc.get());
                    add(&mut moved.gpu, answer.migrated_gpu.get());
                }
                self.finish(chunk, outcomes.into_iter());
                Ok(Answered { vacated: answer.vacated.get().into(), late })
            }
            Err(lie) => {
                self.finish(chunk, std::iter::repeat(Outcome::Unanswered));
                Err(lie)
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

    /// The driver is gone: nobody will answer. Returns how many requests ended.
    pub(super) fn reset(&mut self) -> u64 {
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        all.iter().for_each(|job| self.give_up(*job));
        self.outstanding = None;
        all.len() as u64
    }

    /// Ends `job` with what is known of it. A request on the wire stays outstanding, for a late
    /// answer to be told from the next one's.
    fn give_up(&mut self, job: u64) {
        let on_the_wire = self.outstanding.map(|(_, chunk)| chunk);
        let waiting: Vec<Chunk> =
            self.chunks.iter().chain(&on_the_wire).copied().filter(|c| c.job == job).collect();
        self.chunks.retain(|chunk| chunk.job != job);
        for chunk in waiting {
            self.finish(chunk, std::iter::repeat(Outcome::Unanswered));
        }
    }

    /// Enters the outcomes of a chunk; with the last chunk of its job, reports.
    fn finish(&mut self, chunk: Chunk, outcomes: impl Iterator<Item = Outcome>) {
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

fn check(
    id: u64,
    chunk: Chunk,
    answer: &EvacuationAnswer,
    outcomes: &[u8],
    in_balloon: impl Fn(BlockId) -> bool,
) -> Result<Vec<Outcome>, Lie> {
    let given = answer.id.get();
    if given != id {
        return Err(Lie::WrongRequest { given, expected: Some(id) });
    }
    if outcomes.len() != chunk.blocks as usize {
        return Err(Lie::Outcomes { given: outcomes.len(), asked: chunk.blocks });
    }
    let mut checked = Vec::with_capacity(outcomes.len());
    for (block, raw) in chunk.iter().zip(outcomes) {
        checked.push(match BlockOutcome::from(*raw) {
            BlockOutcome::Vacated if in_balloon(block) => Outcome::Vacated,
            BlockOutcome::Vacated => return Err(Lie::Block { block, what: "vacated" }),
            BlockOutcome::Busy => Outcome::Busy,
            BlockOutcome::NotRam => Outcome::NotRam,
            BlockOutcome::Unsupported(_) => return Err(Lie::Block { block, what: "nonsense" }),
        });
    }
    let count = |wanted| checked.iter().filter(|outcome| **outcome == wanted).count() as u64;
    let (vacated, busy) = (answer.vacated.get(), answer.busy.get());
    if (count(Outcome::Vacated), count(Outcome::Busy)) != (vacated.into(), busy.into()) {
        return Err(Lie::Counts { vacated, busy });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn request(all: &mut Evacuations, blocks: &[u64]) -> Receiver<EvacuationReport> {
        let (done, report) = channel();
        let blocks: Vec<BlockId> = blocks.iter().copied().map(BlockId).collect();
        all.request(&blocks, false, PATIENCE, Box::new(move |r| done.send(r).unwrap()));
        report
    }

    fn answer(id: u64, vacated: u32, busy: u32) -> EvacuationAnswer {
        EvacuationAnswer {
            id: id.into(),
            vacated: vacated.into(),
            busy: busy.into(),
            migrated_lru: 10.into(),
            ..EvacuationAnswer::default()
        }
    }

    fn outcomes(report: &EvacuationReport) -> Vec<(u64, Outcome)> {
        report.outcomes.iter().map(|(block, outcome)| (block.0, *outcome)).collect()
    }

    #[test]
    fn runs_of_blocks_go_out_one_after_the_other() {
        let mut all = Evacuations::default();
        let report = request(&mut all, &[3, 4, 9]);
        let first = all.next().unwrap();
        assert_eq!((first.id.get(), first.start_pfn.get(), first.nr_blocks.get()), (1, 3 * 512, 2));
        assert!(all.next().is_none(), "one at a time");
        assert!(all.asks_for(BlockId(4)) && !all.asks_for(BlockId(9)));
        let answered = Answered { vacated: 1, late: false };
        assert_eq!(all.answer(&answer(1, 1, 1), &[0, 1], |_| true), Ok(answered));
        assert!(report.try_recv().is_err());
        assert_eq!(all.next().unwrap().start_pfn.get(), 9 * 512);
        all.answer(&answer(2, 0, 0), &[2], |_| true).unwrap();
        let report = report.try_recv().unwrap();
        assert_eq!(
            outcomes(&report),
            [(3, Outcome::Vacated), (4, Outcome::Busy), (9, Outcome::NotRam)]
        );
        assert_eq!((report.migrated.lru, report.count(Outcome::Busy)), (20, 1));
    }

    #[test]
    fn long_runs_are_cut() {
        let mut all = Evacuations::default();
        let blocks: Vec<u64> = (100..100 + u64::from(BLOCK_MAX) + 5).collect();
        let _report = request(&mut all, &blocks);
        assert_eq!(all.next().unwrap().nr_blocks.get(), BLOCK_MAX);
        all.answer(&answer(1, 0, BLOCK_MAX), &[1; BLOCK_MAX as usize], |_| false).unwrap();
        assert_eq!(all.next().unwrap().nr_blocks.get(), 5);
    }

    #[test]
    fn lies_are_refused_and_end_the_request() {
        for (id, vacated, busy, raw, in_balloon) in [
            (2, 1, 1, &[0, 1][..], true),
            (1, 2, 0, &[0, 1][..], true),
            (1, 1, 1, &[0][..], true),
            (1, 1, 1, &[0, 1][..], false),
            (1, 1, 1, &[0, 7][..], true),
            (0, 0, 0, &[][..], true),
            (1, u32::MAX, u32::MAX, &[0, 1][..], true),
        ] {
            let mut all = Evacuations::default();
            let report = request(&mut all, &[5, 6]);
            all.next().unwrap();
            assert!(all.answer(&answer(id, vacated, busy), raw, |_| in_balloon).is_err());
            let report = report.try_recv().unwrap();
            assert_eq!(report.count(Outcome::Unanswered), 2);
            assert_eq!(report.migrated, Migrated::default());
            assert!(all.next().is_none());
        }
    }

    #[test]
    fn an_answer_to_nothing_is_a_lie() {
        let mut all = Evacuations::default();
        let lie = Lie::WrongRequest { given: 1, expected: None };
        assert_eq!(all.answer(&answer(1, 0, 0), &[], |_| true), Err(lie));
    }

    #[test]
    fn a_guest_that_never_answers_costs_its_patience_and_no_more() {
        let mut all = Evacuations::default();
        let first = request(&mut all, &[5, 9]);
        all.next().unwrap();
        let now = Instant::now();
        assert_eq!(all.expire(now), 0);
        assert!(all.deadline().is_some());
        assert_eq!(all.expire(now + PATIENCE * 2), 1);
        assert_eq!(first.try_recv().unwrap().count(Outcome::Unanswered), 2);
        assert_eq!(all.deadline(), None);
        // Its late answer is not mistaken for the next one's, and the next one goes out then.
        let second = request(&mut all, &[7]);
        assert!(all.next().is_none());
        assert!(!all.asks_for(BlockId(5)), "it comes too late to stay");
        let answered = Answered { vacated: 1, late: true };
        assert_eq!(all.answer(&answer(1, 1, 0), &[0], |_| true), Ok(answered));
        assert_eq!(all.next().unwrap().id.get(), 2);
        all.answer(&answer(2, 1, 0), &[0], |_| true).unwrap();
        assert_eq!(second.try_recv().unwrap().count(Outcome::Vacated), 1);
    }

    #[test]
    fn a_reset_ends_everything_and_ids_go_on() {
        let mut all = Evacuations::default();
        let reports = [request(&mut all, &[1]), request(&mut all, &[2])];
        all.next().unwrap();
        assert_eq!(all.reset(), 2);
        for report in reports {
            assert_eq!(report.try_recv().unwrap().count(Outcome::Unanswered), 1);
        }
        assert!(all.next().is_none());
        let _report = request(&mut all, &[3]);
        assert_eq!(all.next().unwrap().id.get(), 2);
    }

    #[test]
    fn a_request_for_nothing_is_answered_at_once() {
        let mut all = Evacuations::default();
        assert_eq!(request(&mut all, &[]).try_recv().unwrap().outcomes, []);
    }
}
