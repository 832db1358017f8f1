// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worst buffers that each queue can carry: no round does more work than its deadline and one
//! step allow, and later rounds do the rest.

use zerocopy::IntoBytes;

use super::super::protocol::EvacuationAnswer;
use super::super::roles::BalloonQueue;
use super::*;

/// Work that each round may do here.
const WORK: u64 = 300_000;
/// The costliest step: a block of which every other page is discarded.
const STEP: u64 = 1_600_000;

fn deadline() -> Deadline {
    Deadline::of_work(WORK)
}

impl Rig {
    fn hurried(features: u64) -> Self {
        let mut rig = Self::new_with(config(), deadline);
        let queues = super::super::roles::of(features).count();
        rig.driver.probe(features, u16::try_from(queues).unwrap());
        rig
    }

    /// Runs the event loop until `count` buffers of `queue` are used; returns the number of turns.
    fn turns_until_used(&mut self, queue: u16, count: usize) -> usize {
        let (mut turns, mut used) = (0, 0);
        loop {
            while self.driver.used(queue).is_some() {
                used += 1;
            }
            if used >= count {
                break;
            }
            assert!(self.driver.turn(), "the queue was given up with {used} of {count} used");
            self.validate();
            turns += 1;
        }
        assert!(!self.driver.turn() || used == count);
        turns
    }

    fn assert_bounded(&self) {
        let most = self.driver.transport().most_work();
        assert!(most <= WORK + STEP, "a round did {most} units of work");
    }
}

/// Every other page of the blocks that are not the driver's.
fn every_other_page() -> Vec<u8> {
    (0..7 * 512u32).step_by(2).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn inflation_with_a_driver_that_does_not_tell_is_cut_between_blocks() {
    let mut rig = Rig::hurried(EVERYTHING & !feature::MUST_TELL_HOST);
    let raw = every_other_page();
    let at = rig.driver.put(&raw);
    rig.driver.add(0, &[MockDescriptor::readable(at, raw.len() as u32)]);
    rig.driver.notify(0);
    assert_eq!(rig.driver.used(0), None, "the page numbers alone are not all");
    rig.validate();
    assert!(rig.turns_until_used(0, 1) >= 5);
    assert_eq!(rig.discards().iter().map(|(_, pages)| pages).sum::<u64>(), 7 * 256);
    assert_eq!(rig.balloon().pending(), Pages(0));
    rig.assert_bounded();
}

#[test]
fn deflation_is_cut_between_blocks() {
    let mut rig = Rig::hurried(EVERYTHING);
    for block in 0..7u32 {
        let _ = rig.driver.run();
        rig.inflate(block * 512..block * 512 + 512);
    }
    let raw = every_other_page();
    let at = rig.driver.put(&raw);
    rig.driver.add(1, &[MockDescriptor::readable(at, raw.len() as u32)]);
    rig.driver.notify(1);
    rig.turns_until_used(1, 1);
    assert_eq!(rig.huge().iter().map(|(_, blocks, _)| blocks).sum::<u64>(), 7);
    assert_eq!(rig.balloon().ballooned(), Pages(7 * 256));
    rig.assert_bounded();
}

#[test]
fn requests_for_blocks_are_cut_between_blocks() {
    let mut rig = Rig::hurried(EVERYTHING);
    let queue = rig.queue(BalloonQueue::Blocks);
    let entries: Vec<u64> = (0..7).map(|block| block * 512).collect();
    let raw = [&1u32.to_le_bytes()[..], &7u32.to_le_bytes(), entries.as_bytes()].concat();
    let request = rig.driver.put(&raw);
    let status = rig.driver.put(&[0xff; 4]);
    let chain =
        [MockDescriptor::readable(request, raw.len() as u32), MockDescriptor::writable(status, 4)];
    rig.driver.add(queue, &chain);
    rig.driver.notify(queue);
    assert!(rig.turns_until_used(queue, 1) >= 3);
    assert_eq!(rig.mem.read_obj::<u32>(status).unwrap(), OK);
    assert_eq!(rig.discards().iter().map(|(_, pages)| pages).sum::<u64>(), 7 * 512);
    rig.assert_bounded();
}

fn all_of_memory() -> MockDescriptor {
    MockDescriptor::writable(GuestAddress(0), 7 << 21)
}

#[test]
fn reports_are_cut_within_a_range() {
    let mut rig = Rig::hurried(EVERYTHING);
    let queue = rig.queue(BalloonQueue::Reports);
    for _ in 0..8 {
        rig.driver.add(queue, &[all_of_memory()]);
    }
    rig.driver.notify(queue);
    assert!(rig.turns_until_used(queue, 8) >= 8 * 3);
    let reported = rig.balloon().counters().free_page_report;
    assert_eq!(reported.asked, 8 * (7 << 21));
    rig.assert_bounded();
}

/// Hints are cut too, and all of them are done when the notification returns.
#[test]
fn hints_are_cut_and_finished_by_the_vcpu_that_notified() {
    let mut rig = Rig::hurried(EVERYTHING);
    rig.balloon().start_hinting(true).unwrap();
    let queue = rig.queue(BalloonQueue::Hints);
    rig.send_bytes(queue, &2u32.to_le_bytes());
    for _ in 0..3 {
        rig.driver.add(queue, &[all_of_memory()]);
    }
    rig.driver.notify(queue);
    for _ in 0..3 {
        assert!(rig.driver.used(queue).is_some(), "the vCPU came back with the hint unused");
    }
    assert_eq!(rig.balloon().counters().free_page_hint.freed, 3 * (7 << 21));
    rig.assert_bounded();
}

#[test]
fn replies_and_statistics_are_cut_between_buffers() {
    let mut rig = Rig::hurried(EVERYTHING);
    let reply = EvacuationAnswer { id: 9.into(), ..EvacuationAnswer::default() };
    let raw = [reply.as_bytes(), &[0; 257]].concat();
    let statistics = [4u8; 2560];
    for (role, raw) in
        [(BalloonQueue::Evacuations, &raw[..]), (BalloonQueue::Stats, &statistics[..])]
    {
        let queue = rig.queue(role);
        let at = rig.driver.put(raw);
        let room = MockDescriptor::writable(rig.driver.put(&[0; 24]), 24);
        for _ in 0..32 {
            let chain = [MockDescriptor::readable(at, raw.len() as u32), room];
            rig.driver.add(queue, &chain);
        }
        rig.driver.notify(queue);
        // The last one is kept.
        assert!(rig.turns_until_used(queue, 31) >= 2);
    }
    assert_eq!(rig.balloon().counters().evacuation_invalid_replies, 32);
    assert_eq!(rig.balloon().counters().stats_updates_count, 32);
    rig.assert_bounded();
}

/// Pages that waited are given back in turns of the timer, each as long as a round of a queue.
#[test]
fn turns_of_the_timer_are_cut_between_blocks() {
    let mut rig = Rig::hurried(EVERYTHING);
    let raw = every_other_page();
    rig.send_bytes(0, &raw);
    rig.balloon().set_target(Pages(1)).unwrap();
    let mut turns = 0;
    while rig.balloon().pending() > Pages(0) {
        let mut deadline = deadline();
        rig.balloon().on_timer_within(&mut deadline);
        assert!(deadline.spent() <= WORK + STEP, "{} units of work", deadline.spent());
        rig.validate();
        turns += 1;
    }
    assert!(turns >= 7, "{turns}");
}

/// System calls after which each step ends.
const RUNS: usize = 32;

/// Some hosts take long for each system call, so the clock is looked at after some of them, however
/// little work they are counted as: a turn that is late from its start does one step only.
#[test]
fn a_step_over_scattered_pages_ends_after_some_runs() {
    const RUNS_OF_A_BLOCK: usize = 40;
    let mut rig = Rig::new_with(config(), Deadline::new);
    let queues = super::super::roles::of(EVERYTHING).count();
    rig.driver.probe(EVERYTHING, u16::try_from(queues).unwrap());
    let scattered = (0..7 * 512u32).filter(|pfn| pfn % 2 == 0 && pfn % 512 < 80);
    rig.inflate(scattered);
    rig.balloon().set_target(Pages(1)).unwrap();
    let mut steps = Vec::new();
    while rig.balloon().pending() > Pages(0) {
        rig.balloon().on_timer_within(&mut Deadline::after(std::time::Duration::ZERO));
        rig.validate();
        steps.push(rig.discards().len());
    }
    assert_eq!(steps.iter().sum::<usize>(), 7 * RUNS_OF_A_BLOCK);
    assert!(steps.iter().all(|runs| *runs <= RUNS), "system calls of each step: {steps:?}");
    assert_eq!(steps.len(), (7 * RUNS_OF_A_BLOCK).div_ceil(RUNS), "full steps: {steps:?}");
}

/// The same for free pages in many short ranges, and for pages that the host has filled again.
#[test]
fn steps_over_short_ranges_end_after_some_runs() {
    let mut rig = Rig::new_with(config(), || Deadline::after(std::time::Duration::ZERO));
    let queues = super::super::roles::of(EVERYTHING).count();
    rig.driver.probe(EVERYTHING, u16::try_from(queues).unwrap());
    let queue = rig.queue(BalloonQueue::Reports);
    let page = |n: u64| MockDescriptor::writable(GuestAddress(n << 13), 4096);
    let chain: Vec<_> = (0..60).map(page).collect();
    rig.driver.add(queue, &chain);
    rig.driver.notify(queue);
    let mut reported = rig.discards().len();
    while rig.driver.turn() {
        let runs = rig.discards().len();
        assert!(runs <= RUNS, "{runs} system calls");
        reported += runs;
    }
    assert_eq!(reported, 60);

    rig.inflate((512..1024u32).step_by(2));
    while rig.balloon().pending() > Pages(0) {
        rig.balloon().set_target(Pages(1)).unwrap();
        rig.balloon().on_timer();
    }
    rig.discards();
    let (mut left, mut steps) = (Some(range(512, 512)), 0);
    while let Some(pages) = left {
        left = rig.balloon().discard_ballooned(pages).unwrap().1;
        assert_eq!(rig.discards().len(), RUNS);
        steps += 1;
    }
    assert_eq!(steps, 256 / RUNS);
}
