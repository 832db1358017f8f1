// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Evacuation requests, over the queue.

use std::sync::mpsc::{Receiver, channel};

use mm::units::BlockId;
use zerocopy::{FromBytes, IntoBytes};

use super::super::protocol::{EvacuationAnswer, EvacuationRequest};
use super::super::roles::BalloonQueue;
use super::super::{BalloonError, BlockResult, EvacuationReport};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// The driver's side of the evacuation queue.
struct Evac {
    rig: Rig,
    queue: u16,
    request: GuestAddress,
}

impl Evac {
    fn new() -> Self {
        let mut rig = Rig::probed();
        let queue = rig.queue(BalloonQueue::Evacuations);
        let request = rig.driver.put(&[0; 24]);
        let mut evac = Self { rig, queue, request };
        evac.post(&[]);
        evac
    }

    /// Posts the buffer, with `answer` in front.
    fn post(&mut self, answer: &[u8]) {
        let room = MockDescriptor::writable(self.request, 24);
        if answer.is_empty() {
            self.rig.driver.add(self.queue, &[room]);
        } else {
            let at = self.rig.driver.put(answer);
            let answer = MockDescriptor::readable(at, answer.len() as u32);
            self.rig.driver.add(self.queue, &[answer, room]);
        }
        self.rig.driver.notify(self.queue);
        self.rig.driver.run();
    }

    fn answer(&mut self, id: u64, outcomes: &[u8]) {
        let count = |wanted| outcomes.iter().filter(|o| **o == wanted).count() as u32;
        let answer = EvacuationAnswer {
            id: id.into(),
            evacuated: count(0).into(),
            busy: count(1).into(),
            migrated_lru: 7.into(),
            migrated_balloon: 1.into(),
            migrated_zsmalloc: 2.into(),
            migrated_gpu: 3.into(),
        };
        self.post(&[answer.as_bytes(), outcomes].concat());
    }

    /// What the device asks, if anything.
    fn asked(&mut self) -> Option<EvacuationRequest> {
        let (_, len) = self.rig.driver.used(self.queue)?;
        assert_eq!(len, 24);
        let raw: [u8; 24] = self.rig.mem.read_obj(self.request).unwrap();
        Some(EvacuationRequest::read_from_bytes(&raw).unwrap())
    }

    fn evacuate(&self, blocks: &[u64], sync: bool) -> Receiver<EvacuationReport> {
        let (done, report) = channel();
        let blocks = blocks.iter().copied().map(BlockId);
        let done = Box::new(move |report| done.send(report).unwrap());
        self.rig.balloon().evacuate(blocks, sync, PATIENCE, done).unwrap();
        report
    }
}

#[test]
fn a_block_is_asked_for_given_up_and_stays() {
    let mut evac = Evac::new();
    evac.rig.balloon().set_target(Pages(512)).unwrap();
    assert_eq!(evac.rig.inflate_blocks(&[5]), OK);
    let report = evac.evacuate(&[3, 2], true);
    let request = evac.asked().unwrap();
    assert_eq!((request.start_pfn.get(), request.nr_blocks.get()), (1024, 2));
    assert_eq!(request.flags.get(), EvacuationRequest::SYNC);
    evac.rig.driver.interrupts();
    assert_eq!(evac.rig.inflate_blocks(&[3]), OK);
    // On top of the target, so that the driver does not take it back immediately.
    assert_eq!(evac.rig.driver.config(0), 1024);
    assert_eq!(evac.rig.inflate_blocks(&[6]), OK);
    assert_eq!(evac.rig.driver.config(0), 1024, "block 6 was not requested");
    assert_eq!(evac.rig.balloon().target_pages(), Pages(512), "the host's target is what it was");
    assert_eq!(evac.rig.balloon().surplus(), Pages(512));
    evac.answer(request.id.get(), &[1, 0]);
    let report = report.try_recv().unwrap();
    assert_eq!(
        report.outcomes,
        [(BlockId(2), BlockResult::Busy), (BlockId(3), BlockResult::Evacuated)]
    );
    let moved = report.migrated;
    assert_eq!((moved.lru, moved.balloon, moved.zsmalloc, moved.gpu), (7, 1, 2, 3));
    let counters = evac.rig.balloon().counters();
    assert_eq!((counters.evacuations, counters.evacuated_blocks), (1, 1));
    assert_eq!(evac.rig.discards(), [(2560, 512), (1536, 512), (3072, 512)]);
    evac.rig.balloon().set_target(Pages(512)).unwrap();
    assert_eq!(evac.rig.driver.config(0), 512, "a target is absolute");
    evac.rig.validate();
}

/// Memory borrowed on top of the target: more, less, none, and a new target in between.
#[test]
fn a_surplus_comes_and_goes() {
    let evac = Evac::new();
    let goal = |evac: &Evac| evac.rig.driver.config(0);
    evac.rig.balloon().set_target(Pages(512)).unwrap();
    evac.rig.driver.interrupts();
    evac.rig.balloon().set_surplus(Pages(1024));
    assert_eq!((goal(&evac), evac.rig.balloon().target_pages()), (1536, Pages(512)));
    evac.rig.balloon().set_surplus(Pages(u64::MAX));
    let ram = evac.rig.balloon().core.pool.ledger.ram();
    assert_eq!(u64::from(goal(&evac)), ram.0, "the goal is at most all of it");
    evac.rig.balloon().set_surplus(Pages(0));
    assert_eq!(goal(&evac), 512);
    evac.rig.balloon().set_surplus(Pages(512));
    evac.rig.balloon().set_target(Pages(1024)).unwrap();
    assert_eq!((goal(&evac), evac.rig.balloon().surplus()), (1024, Pages(0)));
    evac.rig.validate();
}

#[test]
fn the_next_request_waits_for_the_answer() {
    let mut evac = Evac::new();
    let first = evac.evacuate(&[1], false);
    let second = evac.evacuate(&[2], false);
    let request = evac.asked().unwrap();
    assert_eq!(evac.asked(), None);
    evac.answer(request.id.get(), &[2]);
    assert_eq!(first.try_recv().unwrap().outcomes, [(BlockId(1), BlockResult::NotRam)]);
    let request = evac.asked().unwrap();
    assert_eq!(request.start_pfn.get(), 1024);
    evac.answer(request.id.get(), &[1]);
    assert_eq!(second.try_recv().unwrap().count(BlockResult::Busy), 1);
    assert_eq!(evac.asked(), None);
}

#[test]
fn only_whole_blocks_of_ram_are_asked_for() {
    let evac = Evac::new();
    // The hole, the ragged end, and nowhere.
    let report = evac.evacuate(&[9, 17, u64::MAX], false);
    assert_eq!(report.try_recv().unwrap().outcomes, []);
}

#[test]
fn rejects_a_reply_that_claims_a_block_not_in_the_balloon() {
    let mut evac = Evac::new();
    let report = evac.evacuate(&[2, 3], false);
    let request = evac.asked().unwrap();
    evac.rig.inflate_blocks(&[2]);
    evac.rig.inflate(3 * 512..3 * 512 + 511);
    evac.answer(request.id.get(), &[0, 0]);
    assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 2);
    assert_eq!(evac.rig.balloon().counters().evacuation_invalid_replies, 1);
    assert_eq!(evac.rig.balloon().ballooned(), Pages(1023));
    evac.rig.validate();
}

/// The host sets a target while the guest evacuates: the guest takes the block right back, and its
/// reply is still true.
#[test]
fn target_that_changes_meanwhile_does_not_make_a_reply_invalid() {
    let mut evac = Evac::new();
    for (target, blocks) in [(0, [2, 3]), (64, [3, 4]), (0, [2, 4])] {
        let report = evac.evacuate(&blocks, false);
        let mut outcomes = Vec::new();
        while let Some(request) = evac.asked() {
            let first = request.start_pfn.get() / 512;
            let asked: Vec<u64> = (first..first + u64::from(request.nr_blocks.get())).collect();
            assert_eq!(evac.rig.inflate_blocks(&asked), OK);
            evac.rig.balloon().set_target(Pages(target)).unwrap();
            assert_eq!(evac.rig.deflate_blocks(&asked), OK);
            evac.answer(request.id.get(), &vec![0; asked.len()]);
            outcomes.extend(asked);
        }
        assert_eq!(outcomes, blocks);
        assert_eq!(report.try_recv().unwrap().count(BlockResult::Evacuated), 2);
    }
    assert_eq!(evac.rig.balloon().counters().evacuation_invalid_replies, 0);
    assert_eq!(evac.rig.balloon().ballooned(), Pages(0));
    evac.rig.validate();
}

#[test]
fn invalid_replies_end_the_request_and_nothing_else() {
    type Forge = fn(u64) -> Vec<u8>;
    fn forge(id: u64, evacuated: u32, outcomes: &[u8]) -> Vec<u8> {
        let answer = EvacuationAnswer {
            id: id.into(),
            evacuated: evacuated.into(),
            ..EvacuationAnswer::default()
        };
        [answer.as_bytes(), outcomes].concat()
    }
    let invalid: [Forge; 6] = [
        |id| forge(id + 1, 0, &[2]),
        |id| forge(id, 1, &[2]),
        |id| forge(id, 0, &[]),
        // Of blocks that it was not asked for.
        |id| forge(id, 0, &[2, 2]),
        |id| forge(id, 0, &[2; 300]),
        |id| forge(id, 0, &[9]),
    ];
    for forged in invalid {
        let mut evac = Evac::new();
        let report = evac.evacuate(&[2], false);
        let id = evac.asked().unwrap().id.get();
        evac.post(&forged(id));
        assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 1);
        assert_eq!(evac.rig.balloon().counters().evacuation_invalid_replies, 1);
        // The next request is sent as usual.
        let report = evac.evacuate(&[4], false);
        let id = evac.asked().unwrap().id.get();
        evac.answer(id, &[1]);
        assert_eq!(report.try_recv().unwrap().count(BlockResult::Busy), 1);
        assert!(!evac.rig.driver.needs_reset());
        evac.rig.validate();
    }
}

#[test]
fn rejects_replies_to_no_request() {
    let mut evac = Evac::new();
    evac.answer(1, &[0; 256]);
    assert_eq!(evac.rig.balloon().counters().evacuation_invalid_replies, 1);
    evac.post(&[1, 2, 3]);
    assert_eq!(evac.rig.balloon().counters().bad_buffers, 1);
    // Of several buffers the device keeps the last and gives the others back.
    assert!(evac.rig.driver.used(evac.queue).is_some());
    assert!(evac.rig.driver.used(evac.queue).is_some());
    assert!(evac.rig.driver.used(evac.queue).is_none());
}

#[test]
fn ignores_an_empty_reply() {
    let mut evac = Evac::new();
    let report = evac.evacuate(&[2], false);
    let id = evac.asked().unwrap().id.get();
    evac.answer(0, &[]);
    assert!(report.try_recv().is_err());
    evac.answer(id, &[1]);
    assert_eq!(report.try_recv().unwrap().count(BlockResult::Busy), 1);
    assert_eq!(evac.rig.balloon().counters().evacuation_invalid_replies, 0);
}

#[test]
fn a_guest_that_never_answers_blocks_nothing() {
    let mut evac = Evac::new();
    let (done, report) = channel();
    let done = Box::new(move |report: EvacuationReport| done.send(report).unwrap());
    evac.rig.balloon().evacuate([BlockId(2)], false, Duration::ZERO, done).unwrap();
    assert!(evac.asked().is_some());
    evac.rig.balloon().on_timer();
    assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 1);
    assert_eq!(evac.rig.balloon().counters().evacuation_fails, 1);
    assert_eq!(evac.rig.inflate_blocks(&[1]), OK);
}

/// Blocks that arrive when no thread waits for them any more are not lent: the driver is asked
/// to look at its target, which it has gone beyond.
#[test]
fn returns_blocks_that_come_too_late() {
    const CONFIG_CHANGED: u32 = 2;
    let mut evac = Evac::new();
    let (done, report) = channel();
    let done = Box::new(move |report: EvacuationReport| done.send(report).unwrap());
    evac.rig.balloon().evacuate([BlockId(2)], false, Duration::ZERO, done).unwrap();
    let id = evac.asked().unwrap().id.get();
    evac.rig.balloon().on_timer();
    assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 1);
    assert_eq!(evac.rig.inflate_blocks(&[2]), OK);
    assert_eq!(evac.rig.balloon().surplus(), Pages(0));
    assert_eq!(evac.rig.driver.config(0), 0);
    evac.rig.driver.acknowledge();
    evac.answer(id, &[0]);
    assert_eq!(evac.rig.balloon().counters().evacuated_blocks, 1);
    assert_eq!(evac.rig.driver.acknowledge() & CONFIG_CHANGED, CONFIG_CHANGED);
}

#[test]
fn a_buffer_too_small_for_a_request_is_given_back() {
    let mut evac = Evac::new();
    evac.rig.driver.add(evac.queue, &[MockDescriptor::writable(evac.request, 23)]);
    evac.rig.driver.notify(evac.queue);
    evac.rig.driver.run();
    assert_eq!(evac.rig.driver.used(evac.queue).map(|(_, len)| len), Some(0));
    let _report = evac.evacuate(&[2], false);
    assert!(evac.asked().is_some(), "the good buffer is still there");
}

#[test]
fn without_the_feature_there_is_no_evacuation() {
    let done = || Box::new(|_| panic!("nothing was asked for"));
    let rig = Rig::with(EVERYTHING & !feature::EVACUATE);
    let refused = rig.balloon().evacuate([BlockId(1)], false, PATIENCE, done());
    assert!(matches!(refused, Err(BalloonError::NotAccepted(_))));
    let rig = Rig::new(BalloonConfig { evacuation: false, ..config() });
    let refused = rig.balloon().evacuate([BlockId(1)], false, PATIENCE, done());
    assert!(matches!(refused, Err(BalloonError::NotConfigured(_))));
}

#[test]
fn a_reset_ends_what_was_asked() {
    let mut evac = Evac::new();
    let report = evac.evacuate(&[2], false);
    evac.rig.driver.reset();
    assert_eq!(report.try_recv().unwrap().count(BlockResult::Unanswered), 1);
}
