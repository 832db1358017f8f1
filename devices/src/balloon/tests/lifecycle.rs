// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Negotiation, reset and new probe, targets, statistics.

use super::super::roles::BalloonQueue;
use super::super::{BalloonError, Statistics};
use super::*;
use crate::virtio::VirtioDevice;

#[test]
fn features_follow_the_configuration() {
    let rig = Rig::new(config());
    let all = feature::MUST_TELL_HOST
        | feature::STATS_VQ
        | feature::DEFLATE_ON_OOM
        | feature::FREE_PAGE_HINT
        | feature::PAGE_POISON
        | feature::REPORTING
        | feature::HINT_WAIT_ON_ACK
        | feature::BLOCKS
        | feature::EVACUATE;
    assert_eq!(rig.driver.offered() & all, all);
    let bare = BalloonConfig {
        deflate_on_oom: false,
        blocks: false,
        stats_interval: Duration::ZERO,
        free_page_hinting: false,
        free_page_reporting: false,
        ..BalloonConfig::default()
    };
    let rig = Rig::new(bare);
    assert_eq!(rig.driver.offered() & all, feature::MUST_TELL_HOST | feature::PAGE_POISON);
    assert_eq!(rig.balloon().queue_sizes().len(), 2);
    assert_eq!(rig.balloon().current_config(), BalloonConfig { evacuation: false, ..bare });
}

#[test]
fn queues_close_up_over_what_was_not_accepted() {
    // Blocks are queue 2 here, and 5 with everything.
    let mut rig = Rig::with(feature::BLOCKS | feature::MUST_TELL_HOST);
    assert_eq!(rig.queue(BalloonQueue::Blocks), 2);
    assert_eq!(rig.inflate_blocks(&[1]), OK);
    let mut rig = Rig::with(feature::STATS_VQ | feature::REPORTING);
    assert_eq!(rig.queue(BalloonQueue::Reports), 3);
    let block = MockDescriptor::writable(GuestAddress(2 << 20), 2 << 20);
    rig.driver.send(3, &[block]);
    assert_eq!(rig.discards(), [(512, 512)]);
}

#[test]
fn evacuation_without_blocks_is_refused() {
    let mut rig = Rig::new(config());
    rig.driver.negotiate(feature::EVACUATE);
    (0..3).for_each(|queue| rig.driver.set_up_queue(queue));
    rig.driver.start();
    assert!(rig.driver.needs_reset());
    assert_eq!(rig.balloon().counters().activate_fails, 1);
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    assert_eq!(rig.inflate_blocks(&[1]), OK);
}

#[test]
fn a_queue_that_is_missing_fails_the_activation() {
    let mut rig = Rig::new(config());
    rig.driver.negotiate(EVERYTHING);
    (0..6).for_each(|queue| rig.driver.set_up_queue(queue));
    rig.driver.start();
    assert!(rig.driver.needs_reset());
}

#[test]
fn a_reset_in_the_middle_loses_nothing() {
    let mut rig = Rig::probed();
    rig.balloon().set_target(Pages(2000)).unwrap();
    for pfn in 600..800 {
        rig.write_page(pfn, pfn);
    }
    rig.inflate(1024..1536);
    rig.inflate(600..700);
    rig.settle();
    rig.inflate(700..800);
    rig.driver.set_config(4, 712);
    rig.discards();
    rig.huge();
    rig.driver.reset();
    // The guest owns all its memory again, and keeps the contents of pages that were not discarded.
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    assert_eq!(rig.balloon().actual(), Pages(0));
    assert_eq!(rig.huge(), [(1, 1, true)]);
    rig.settle();
    assert_eq!(rig.discards(), []);
    for pfn in 700..800 {
        assert_eq!(rig.page(pfn), pfn);
    }
    // The target is kept, and the driver reads it after the reset.
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    assert_eq!(rig.driver.config(0), 2000);
    rig.inflate(512..1024);
    assert_eq!(rig.balloon().ballooned(), Pages(512));
    assert_eq!(rig.discards(), [(512, 512)]);
    rig.validate();
}

#[test]
fn ignores_a_late_notification_after_a_reset() {
    let mut rig = Rig::probed();
    let at = rig.driver.put(&600u32.to_le_bytes());
    rig.driver.add(0, &[MockDescriptor::readable(at, 4)]);
    rig.driver.notify(0);
    rig.driver.reset();
    assert_eq!(rig.driver.run(), 1);
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    assert!(!rig.driver.needs_reset());
}

#[test]
fn the_target_may_change_under_way() {
    let mut rig = Rig::probed();
    rig.driver.interrupts();
    for target in [1000, 500, 0, 700] {
        rig.balloon().set_target(Pages(target)).unwrap();
        assert_eq!(rig.driver.interrupts(), 1);
        assert_eq!(u64::from(rig.driver.config(0)), target);
    }
    rig.balloon().set_target(Pages(700)).unwrap();
    assert_eq!(rig.driver.interrupts(), 0, "nothing has changed");
    rig.inflate(600..800);
    // The host changes the target halfway: pending pages are discarded now.
    rig.balloon().set_target(Pages(150)).unwrap();
    assert!(rig.balloon().core.pool.due());
    rig.deflate(750..800);
    rig.settle();
    assert_eq!(rig.discards(), [(600, 150)]);
    rig.driver.set_config(4, 150);
    assert_eq!(rig.balloon().actual(), Pages(150));
    assert_eq!(rig.balloon().ballooned(), Pages(150));
    rig.validate();
}

#[test]
fn a_target_beyond_memory_is_refused() {
    let rig = Rig::probed();
    let ram = Pages(8 * 512 + 768);
    rig.balloon().set_target(ram).unwrap();
    let refused = rig.balloon().set_target(Pages(ram.0 + 1));
    assert!(matches!(refused, Err(BalloonError::TargetTooLarge { .. })));
    assert_eq!(rig.balloon().target_pages(), ram);
}

#[test]
fn the_driver_writes_actual_and_poison_and_nothing_else() {
    let rig = Rig::probed();
    rig.balloon().set_target(Pages(7)).unwrap();
    for offset in [0, 4, 8, 12, 16, 20, 24] {
        rig.driver.set_config(offset, 0x1234_5678);
    }
    let fields: Vec<u32> = (0..7).map(|field| rig.driver.config(field * 4)).collect();
    assert_eq!(fields, [7, 0x1234_5678, 0, 0x1234_5678, 512, 256, 0]);
    // A false `actual` only affects the reported number.
    assert_eq!(rig.balloon().actual(), Pages(0x1234_5678));
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    rig.driver.transport().write(0x104, &[1]);
    rig.driver.transport().write(0x103, &[1, 2, 3, 4]);
    assert_eq!(rig.driver.config(4), 0x1234_5678);
}

fn stat(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()
}

impl Rig {
    /// Posts a statistics buffer, which the device keeps.
    fn post_stats(&mut self, raw: &[u8]) -> u16 {
        let queue = self.queue(BalloonQueue::Stats);
        let at = self.driver.put(raw);
        let head = self.driver.add(queue, &[MockDescriptor::readable(at, raw.len() as u32)]);
        self.driver.notify(queue);
        self.driver.run();
        head
    }
}

#[test]
fn statistics_are_polled_by_giving_the_buffer_back() {
    let mut rig = Rig::probed();
    assert!(!rig.balloon().poll_statistics(), "the driver has not sent its buffer yet");
    let head = rig.post_stats(&[stat(4, 1000), stat(77, 5)].concat());
    assert_eq!(rig.driver.used(2), None);
    assert_eq!(rig.balloon().statistics().free_memory, Some(1000));
    assert!(rig.balloon().poll_statistics());
    assert_eq!(rig.driver.used(2), Some((head, 0)));
    assert!(!rig.balloon().poll_statistics(), "it owes an answer");
    rig.post_stats(&stat(4, 2000));
    assert_eq!(rig.balloon().statistics().free_memory, Some(2000));
    let counters = rig.balloon().counters();
    assert_eq!((counters.stats_updates_count, counters.stats_unknown), (2, 1));
    assert_eq!(counters.stats_update_fails, 2);
}

#[test]
fn a_second_statistics_buffer_gives_the_first_back() {
    let mut rig = Rig::probed();
    let first = rig.post_stats(&stat(4, 1));
    let second = rig.post_stats(&stat(4, 2));
    assert_eq!(rig.driver.used(2), Some((first, 0)));
    assert_eq!(rig.driver.used(2), None);
    rig.balloon().poll_statistics();
    assert_eq!(rig.driver.used(2), Some((second, 0)));
}

#[test]
fn the_timer_polls_statistics() {
    let config = BalloonConfig { stats_interval: Duration::from_millis(1), ..config() };
    let mut rig = Rig::new(config);
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    let head = rig.post_stats(&stat(4, 1));
    std::thread::sleep(Duration::from_millis(2));
    rig.balloon().on_timer();
    assert_eq!(rig.driver.used(2), Some((head, 0)));
}

#[test]
fn statistics_cannot_be_turned_on_or_off() {
    let rig = Rig::probed();
    rig.balloon().set_stats_interval(Duration::from_secs(9)).unwrap();
    assert_eq!(rig.balloon().stats_interval(), Duration::from_secs(9));
    let refused = rig.balloon().set_stats_interval(Duration::ZERO);
    assert!(matches!(refused, Err(BalloonError::StatsOnOff)));
    let rig = Rig::new(BalloonConfig { stats_interval: Duration::ZERO, ..config() });
    let refused = rig.balloon().set_stats_interval(Duration::from_secs(1));
    assert!(matches!(refused, Err(BalloonError::StatsOnOff)));
}

#[test]
fn statistics_of_a_driver_that_left_are_forgotten() {
    let mut rig = Rig::probed();
    rig.post_stats(&stat(4, 1));
    rig.driver.reset();
    assert_eq!(*rig.balloon().statistics(), Statistics::default());
    assert!(!rig.balloon().poll_statistics());
}
