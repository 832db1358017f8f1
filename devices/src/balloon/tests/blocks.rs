// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block queue (`docs/virtio-extensions.md`).

use super::super::protocol::BLOCK_MAX;
use super::*;

#[test]
fn configuration_says_what_a_block_is() {
    let rig = Rig::probed();
    assert_eq!((rig.driver.config(16), rig.driver.config(20)), (512, BLOCK_MAX));
    let rig = Rig::new(BalloonConfig { blocks: false, ..config() });
    assert_eq!((rig.driver.config(16), rig.driver.config(20)), (0, 0));
    assert_eq!(rig.driver.offered() & (feature::BLOCKS | feature::EVACUATE), 0);
}

#[test]
fn blocks_go_back_before_the_answer() {
    let mut rig = Rig::probed();
    assert_eq!(rig.inflate_blocks(&[4, 1, 2]), OK);
    assert_eq!(rig.discards(), [(512, 1024), (2048, 512)]);
    assert_eq!(rig.host.lock().unwrap().calls, 1);
    assert_eq!(rig.balloon().ballooned(), Pages(3 * 512));
    assert_eq!(rig.deflate_blocks(&[2, 4]), OK);
    assert_eq!(rig.balloon().ballooned(), Pages(512));
    assert_eq!(rig.discards(), []);
    assert_eq!(rig.huge(), []);
    let counters = rig.balloon().counters();
    assert_eq!((counters.inflated_blocks, counters.deflated_blocks), (3, 2));
    assert_eq!((counters.block_requests, counters.block_refusals), (2, 0));
    rig.validate();
}

#[test]
fn a_request_is_done_whole_or_not_at_all() {
    let mut rig = Rig::probed();
    rig.inflate([512 * 3 + 5]);
    // Blocks that are misaligned, twice, beyond RAM, in the hole, ragged, or beyond all addresses.
    for entries in [
        &[512u64, 1025][..],
        &[512, 512],
        &[512, 8 * 512],
        &[512, 17 * 512],
        &[512, 1 << 40],
        &[512, !511],
        &[u64::MAX],
    ] {
        assert_eq!(rig.block_request(1, entries.len() as u32, entries), Some(BAD_BLOCK));
        assert_eq!(rig.block_request(2, entries.len() as u32, entries), Some(BAD_BLOCK));
    }
    // A block with a page in the balloon, and a block without.
    assert_eq!(rig.inflate_blocks(&[1, 3]), BAD_STATE);
    assert_eq!(rig.deflate_blocks(&[3]), BAD_STATE);
    assert_eq!(rig.deflate_blocks(&[1]), BAD_STATE);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
    assert_eq!(rig.discards(), []);
    assert_eq!(rig.balloon().counters().block_refusals, 17);
    assert_eq!(rig.inflate_blocks(&[1]), OK);
    assert_eq!(rig.inflate_blocks(&[1]), BAD_STATE);
    rig.validate();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut rig = Rig::probed();
    let many: Vec<u64> = (0..=u64::from(BLOCK_MAX)).map(|block| block * 512).collect();
    for (op, count, entries) in [
        (0, 1, &[512u64][..]),
        (3, 1, &[512]),
        (u32::MAX, 1, &[512]),
        (1, 0, &[512]),
        (1, 2, &[512]),
        (1, u32::MAX, &[512]),
        (1, 1, &[]),
        (1, BLOCK_MAX + 1, &many[..]),
    ] {
        assert_eq!(rig.block_request(op, count, entries), Some(BAD_REQUEST), "{op} {count}");
    }
    // More data than the count: the rest is ignored.
    assert_eq!(rig.block_request(1, 1, &[512, 1024]), Some(OK));
    assert_eq!(rig.balloon().ballooned(), Pages(512));
    rig.validate();
}

#[test]
fn without_room_for_a_status_nothing_is_done() {
    let mut rig = Rig::probed();
    let queue = rig.queue(super::super::roles::BalloonQueue::Blocks);
    let raw = [&[1, 0, 0, 0, 1, 0, 0, 0][..], &512u64.to_le_bytes()].concat();
    assert_eq!(rig.send_bytes(queue, &raw), 0);
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    assert_eq!(rig.balloon().counters().bad_buffers, 1);
}

#[test]
fn a_block_may_leave_page_by_page_and_come_page_by_page() {
    let mut rig = Rig::probed();
    assert_eq!(rig.inflate_blocks(&[2]), OK);
    rig.discards();
    // A page of a ballooned block is migrated: its new place in, its old place out.
    rig.inflate([600]);
    rig.deflate([1030]);
    assert_eq!(rig.balloon().counters().migrated_pages, 1);
    assert_eq!(rig.deflate_blocks(&[2]), BAD_STATE);
    assert_eq!(rig.huge(), [(2, 1, false)]);
    rig.inflate([1030]);
    assert_eq!(rig.deflate_blocks(&[2]), OK);
    assert_eq!(rig.huge(), [(2, 1, true)]);
    rig.inflate((512..1024).filter(|pfn| *pfn != 600));
    assert_eq!(rig.discards().last(), Some(&(512, 512)));
    assert_eq!(rig.deflate_blocks(&[1]), OK);
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    rig.validate();
}

#[test]
fn a_block_migration_is_one_block_in_and_one_block_out() {
    let mut rig = Rig::probed();
    rig.inflate_blocks(&[1, 2]);
    rig.inflate_blocks(&[3]);
    rig.deflate_blocks(&[1]);
    rig.inflate_blocks(&[4, 5]);
    rig.deflate_blocks(&[2]);
    rig.inflate_blocks(&[1]);
    rig.deflate([2048]);
    assert_eq!(rig.balloon().counters().migrated_blocks, 1);
    assert_eq!(rig.balloon().counters().migrated_pages, 0);
}
