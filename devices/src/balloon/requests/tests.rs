// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
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
    // Block 5 was in the balloon before, block 6 goes in now; both may have left by the time of the
    // reply.
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
