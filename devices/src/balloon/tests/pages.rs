// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Inflate and deflate, and when pages go back to the host.

use std::time::{Duration, Instant};

use mm::units::Pages;

use super::*;

#[test]
fn pages_wait_for_their_block_and_go_back_as_one() {
    let mut rig = Rig::probed();
    // Backwards and in pieces, as a guest's allocator gives them.
    rig.inflate((768..1024).rev());
    assert_eq!(rig.balloon().ballooned(), Pages(256));
    assert_eq!(rig.balloon().pending(), Pages(256));
    assert_eq!(rig.discards(), []);
    rig.inflate(512..768);
    assert_eq!(rig.discards(), [(512, 512)]);
    let counters = rig.balloon().counters();
    assert_eq!(counters.inflated_pages, 512);
    assert_eq!((counters.inflation.count, counters.inflation.whole_blocks), (1, 1));
    assert_eq!((counters.inflation.asked, counters.inflation.freed), (2 << 20, 2 << 20));
    assert_eq!(rig.huge(), []);
    rig.validate();
}

#[test]
fn two_blocks_that_fill_up_in_one_buffer_are_one_call() {
    let mut rig = Rig::probed();
    rig.inflate(512..1536);
    assert_eq!(rig.discards(), [(512, 1024)]);
    assert_eq!(rig.host.lock().unwrap().calls, 1);
}

#[test]
fn single_pages_go_back_when_nothing_more_comes() {
    let mut rig = Rig::probed();
    rig.inflate([600, 602, 603, 1100]);
    assert_eq!(rig.discards(), []);
    let begin = Instant::now();
    while rig.balloon().pending() != Pages(0) {
        assert!(begin.elapsed() < Duration::from_secs(5), "the timer was not set");
        let mut poll = [rustix::event::PollFd::from_borrowed_fd(
            // SAFETY: the balloon lives to the end of the test.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(rig.balloon().timer_fd()) },
            rustix::event::PollFlags::IN,
        )];
        let second = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut poll, Some(&second)), Ok(1));
        rig.balloon().on_timer();
    }
    assert!(begin.elapsed() >= super::super::pool::PATIENCE);
    assert_eq!(rig.discards(), [(600, 1), (602, 2), (1100, 1)]);
    // Blocks 1 and 2 have holes now: a huge page there would take them back.
    assert_eq!(rig.huge(), [(1, 2, false)]);
    rig.validate();
}

#[test]
fn single_pages_go_back_at_once_when_the_target_is_reached() {
    let mut rig = Rig::probed();
    rig.balloon().set_target(Pages(3)).unwrap();
    rig.inflate([600, 602]);
    assert!(!rig.balloon().core.pool.due());
    rig.inflate([604]);
    assert!(rig.balloon().core.pool.due());
    rig.balloon().on_timer();
    assert_eq!(rig.discards(), [(600, 1), (602, 1), (604, 1)]);
}

#[test]
fn a_block_that_was_cut_is_still_given_back_as_one_when_it_fills_up() {
    let mut rig = Rig::probed();
    rig.inflate(512..600);
    rig.settle();
    assert_eq!(rig.discards(), [(512, 88)]);
    rig.inflate(600..1024);
    assert_eq!(rig.discards(), [(512, 512)]);
    assert_eq!(rig.balloon().counters().inflation.asked, 2 << 20, "no page counts twice");
    rig.validate();
}

#[test]
fn deflated_pages_are_never_discarded() {
    let mut rig = Rig::probed();
    rig.inflate(600..700);
    rig.write_page(650, 0);
    rig.deflate(640..660);
    rig.write_page(650, 42);
    rig.settle();
    assert_eq!(rig.discards(), [(600, 40), (660, 40)]);
    assert_eq!(rig.page(650), 42);
    assert_eq!(rig.balloon().counters().spared_pages, 20);
    assert_eq!(rig.balloon().ballooned(), Pages(80));
    rig.validate();
}

#[test]
fn discards_at_once_for_a_driver_that_does_not_tell() {
    let mut rig = Rig::with(EVERYTHING & !feature::MUST_TELL_HOST);
    rig.inflate([600, 602]);
    assert_eq!(rig.discards(), [(600, 1), (602, 1)]);
    assert_eq!(rig.huge(), [(1, 1, false)]);
    assert_eq!(rig.balloon().pending(), Pages(0));
    rig.validate();
}

#[test]
fn huge_pages_come_back_with_the_last_page() {
    let mut rig = Rig::probed();
    rig.inflate(512..1024);
    rig.discards();
    // The guest may touch the first half now: it must not bring the second half back with it.
    rig.deflate(512..768);
    assert_eq!(rig.huge(), [(1, 1, false)]);
    rig.deflate(768..1024);
    assert_eq!(rig.huge(), [(1, 1, true)]);
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    rig.validate();
}

#[test]
fn a_block_that_leaves_in_one_buffer_costs_nothing() {
    let mut rig = Rig::probed();
    rig.inflate(512..1024);
    rig.deflate(512..1024);
    assert_eq!(rig.huge(), []);
}

#[test]
fn a_migration_is_one_page_in_and_one_page_out() {
    let mut rig = Rig::probed();
    rig.balloon().set_target(Pages(512)).unwrap();
    rig.inflate(512..1024);
    rig.discards();
    // Compaction moves page 700 to page 1300, and then on to 1400.
    rig.inflate([1300]);
    rig.deflate([700]);
    rig.inflate([1400]);
    rig.deflate([1300]);
    let counters = rig.balloon().counters();
    assert_eq!(counters.migrated_pages, 2);
    assert_eq!(rig.balloon().ballooned(), Pages(512));
    // No page of block 2 was discarded: page 1300 kept its contents.
    assert_eq!(rig.discards(), []);
    assert_eq!(counters.spared_pages, 1);
    // And it may still leave again before its turn.
    rig.inflate([700]);
    rig.deflate([1400]);
    assert_eq!(rig.discards(), [(512, 512)]);
    rig.settle();
    assert_eq!(rig.discards(), []);
    rig.validate();
}

#[test]
fn does_not_count_what_only_looks_like_a_migration() {
    let mut rig = Rig::probed();
    rig.inflate([600, 601]);
    rig.deflate([600]);
    rig.inflate([602]);
    rig.inflate([603]);
    rig.deflate([602, 603]);
    rig.deflate([601]);
    rig.inflate([610]);
    rig.deflate([999]);
    rig.deflate([610]);
    assert_eq!(rig.balloon().counters().migrated_pages, 0);
}

#[test]
fn pages_above_the_hole_are_reached_and_a_ragged_block_is_never_whole() {
    let mut rig = Rig::probed();
    let high = 16 * 512;
    rig.inflate(high..high + 768);
    assert_eq!(rig.discards(), [(u64::from(high), 512)]);
    assert_eq!(rig.balloon().pending(), Pages(256));
    rig.settle();
    assert_eq!(rig.discards(), [(u64::from(high) + 512, 256)]);
    assert_eq!(rig.huge(), [], "the ragged block is not wholly ours to set");
    rig.validate();
}

#[test]
fn what_the_host_refuses_is_counted() {
    let mut rig = Rig::probed();
    rig.host.lock().unwrap().refuse = true;
    rig.inflate(512..1024);
    let counters = rig.balloon().counters();
    assert_eq!((counters.inflation.fails, counters.inflation.freed), (1, 0));
    assert_eq!(counters.inflation.asked, 2 << 20);
    assert_eq!(rig.balloon().ballooned(), Pages(512));
    rig.validate();
}

#[test]
fn a_ballooned_page_that_was_filled_again_can_be_given_back_again() {
    let mut rig = Rig::probed();
    rig.inflate(600..610);
    rig.settle();
    rig.discards();
    let (done, left) = rig.balloon().discard_ballooned(range(512, 512)).unwrap();
    assert_eq!((done.freed, left), (Bytes(10 << 12), None));
    assert_eq!(rig.discards(), [(600, 10)]);
    let nothing = (Discarded::default(), None);
    assert_eq!(rig.balloon().discard_ballooned(range(0, 512)).unwrap(), nothing);
    assert!(rig.balloon().has_holes(mm::units::BlockId(1)));
    assert!(!rig.balloon().has_holes(mm::units::BlockId(2)));
    let ranges: Vec<_> = rig.balloon().ballooned_ranges().iter().collect();
    assert_eq!(ranges, [range(600, 10)]);
}
