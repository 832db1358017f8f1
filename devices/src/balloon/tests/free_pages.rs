// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page reporting and hinting, and page poison.

use super::super::roles::BalloonQueue;
use super::super::{BalloonError, HintingStatus};
use super::*;

const POISON: u64 = 12;
const CMD_ID: u64 = 8;

fn pages(start: u64, pages: u64) -> MockDescriptor {
    MockDescriptor::writable(GuestAddress(start * PAGE_SIZE), (pages * PAGE_SIZE) as u32)
}

impl Rig {
    fn report(&mut self, ranges: &[MockDescriptor]) -> u32 {
        let queue = self.queue(BalloonQueue::Reports);
        self.driver.send(queue, ranges)
    }

    /// Sends a command id on the hint queue.
    fn hint_command(&mut self, id: u32) {
        let queue = self.queue(BalloonQueue::Hints);
        self.send_bytes(queue, &id.to_le_bytes());
    }

    /// Sends hints as the driver does: it notifies and goes on. No event loop runs.
    fn hint(&mut self, ranges: &[MockDescriptor]) {
        let queue = self.queue(BalloonQueue::Hints);
        self.driver.add(queue, ranges);
        self.driver.notify(queue);
        assert!(self.driver.used(queue).is_some(), "the vCPU came back with the hint unused");
    }
}

#[test]
fn reported_pages_go_back_before_the_answer() {
    let mut rig = Rig::probed();
    assert_eq!(rig.report(&[pages(512, 512), pages(2048, 1024), pages(1024, 512)]), 0);
    assert_eq!(rig.discards(), [(512, 1024), (2048, 1024)]);
    let counters = rig.balloon().counters();
    assert_eq!((counters.free_page_report.count, counters.free_page_report.freed), (1, 8 << 20));
    assert_eq!(counters.free_page_report.whole_blocks, 4);
    assert_eq!(rig.balloon().ballooned(), Pages(0), "a report is no balloon");
    assert_eq!(rig.balloon().reported_set().pages(), Pages(2048));
    rig.validate();
}

#[test]
fn reports_are_clipped_to_whole_pages_of_ram() {
    let mut rig = Rig::probed();
    let odd = MockDescriptor::writable(GuestAddress(512 * PAGE_SIZE + 1), 3 * PAGE_SIZE as u32);
    let across = pages(15 * 512, 4 * 512);
    let far = MockDescriptor::writable(GuestAddress(u64::MAX - 10), 100);
    rig.report(&[odd, across, far, MockDescriptor::writable(GuestAddress(1 << 50), 4096)]);
    let given = rig.discards();
    assert_eq!(given, [(513, 2), (16 * 512, 768)]);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn poisoned_pages_are_left_alone() {
    let mut rig = Rig::probed();
    rig.driver.set_config(POISON, 0xaaaa_aaaa);
    rig.report(&[pages(512, 512)]);
    rig.balloon().start_hinting(true).unwrap();
    rig.hint_command(2);
    rig.hint(&[pages(1024, 512)]);
    assert_eq!(rig.discards(), []);
    assert_eq!(rig.balloon().counters().poisoned_buffers, 2);
    // The driver poisons inflated pages again after deflation.
    rig.inflate_blocks(&[3]);
    assert_eq!(rig.discards(), [(1536, 512)]);
    // init_on_free: the pattern is what a discarded page reads as.
    rig.driver.set_config(POISON, 0);
    rig.report(&[pages(512, 512)]);
    assert_eq!(rig.discards(), [(512, 512)]);
}

#[test]
fn a_poison_value_means_nothing_without_the_feature() {
    let mut rig = Rig::with(EVERYTHING & !feature::PAGE_POISON);
    rig.driver.set_config(POISON, 1);
    rig.report(&[pages(512, 512)]);
    assert_eq!(rig.discards(), [(512, 512)]);
}

/// The race of hinting: the driver puts a page where the guest may take it as soon as it has
/// notified. By then the page must be discarded, or the guest's next write to it would be lost.
#[test]
fn a_hinted_page_is_discarded_when_the_notification_returns() {
    let mut rig = Rig::with(EVERYTHING & !feature::HINT_WAIT_ON_ACK);
    rig.balloon().start_hinting(true).unwrap();
    assert_eq!(rig.driver.config(CMD_ID), 2);
    rig.hint_command(2);
    for pfn in [512u64, 1024, 1536] {
        rig.write_page(pfn, 1);
        rig.hint(&[pages(pfn, 512)]);
        assert_eq!(rig.page(pfn), 0, "discarded by now");
        rig.write_page(pfn, 42);
    }
    rig.driver.run();
    for pfn in [512u64, 1024, 1536] {
        assert_eq!(rig.page(pfn), 42, "and never again");
    }
    assert_eq!(rig.balloon().counters().free_page_hint.freed, 6 << 20);
}

#[test]
fn queues_of_pages_and_what_may_be_hints_are_not_notified_through_the_event_loop() {
    let notified = |rig: &Rig| {
        let notifiers = rig.driver.transport().notifiers();
        let queues = notifiers
            .filter(|notifier| notifier.offset == crate::transport::register::QUEUE_NOTIFY);
        queues.map(|notifier| notifier.value).collect::<Vec<_>>()
    };
    // Pages are queues 0 and 1. With statistics accepted hints are queue 3, else queue 2.
    assert_eq!(notified(&Rig::probed()), [4, 5, 6]);
    let rig = Rig::new(BalloonConfig { stats_interval: Duration::ZERO, ..config() });
    assert_eq!(notified(&rig), [3, 4, 5]);
    let rig = Rig::new(BalloonConfig { free_page_hinting: false, ..config() });
    assert_eq!(notified(&rig), [2, 3, 4, 5]);
}

#[test]
fn pages_are_in_and_out_again_when_the_notification_returns() {
    let mut rig = Rig::probed();
    for queue in [0, 1] {
        let at = rig.driver.put(&512u32.to_le_bytes());
        let head = rig.driver.add(queue, &[MockDescriptor::readable(at, 4)]);
        rig.driver.notify(queue);
        assert_eq!(rig.driver.used(queue), Some((head, 0)));
    }
    let counters = rig.balloon().counters();
    assert_eq!((counters.inflated_pages, counters.deflated_pages), (1, 1));
}

#[test]
fn a_queue_that_only_might_have_been_hints_works_as_ever() {
    // Reports are queue 3 here.
    let mut rig = Rig::with(EVERYTHING & !feature::FREE_PAGE_HINT);
    assert_eq!(rig.queue(BalloonQueue::Reports), 3);
    let head = rig.driver.add(3, &[pages(512, 512)]);
    rig.driver.notify(3);
    assert_eq!(rig.discards(), [], "not in the vCPU");
    rig.driver.run();
    assert_eq!(rig.discards(), [(512, 512)]);
    assert_eq!(rig.driver.used(3), Some((head, 0)));
}

#[test]
fn hints_count_for_the_current_command_only() {
    let mut rig = Rig::probed();
    rig.hint(&[pages(512, 512)]);
    rig.balloon().start_hinting(false).unwrap();
    rig.hint(&[pages(512, 512)]);
    rig.hint_command(7);
    rig.hint(&[pages(512, 512)]);
    assert_eq!(rig.discards(), []);
    assert_eq!(rig.balloon().counters().stale_hints, 3);
    rig.hint_command(2);
    rig.hint(&[pages(512, 512)]);
    assert_eq!(rig.discards(), [(512, 512)]);
    rig.balloon().stop_hinting().unwrap();
    assert_eq!(rig.driver.config(CMD_ID), 1);
    rig.hint(&[pages(1024, 512)]);
    assert_eq!(rig.discards(), []);
    assert_eq!(
        rig.balloon().hinting_status().unwrap(),
        HintingStatus { host_cmd: 1, guest_cmd: Some(2) }
    );
}

#[test]
fn the_guest_gets_its_pages_back_when_it_is_done() {
    let mut rig = Rig::probed();
    rig.balloon().start_hinting(true).unwrap();
    rig.hint_command(2);
    rig.driver.interrupts();
    let generation = rig.driver.read(crate::transport::register::CONFIG_GENERATION);
    rig.hint_command(0);
    assert_eq!(rig.driver.config(CMD_ID), 1);
    assert!(rig.driver.interrupts() >= 2, "for the buffer and for the configuration");
    assert_ne!(rig.driver.read(crate::transport::register::CONFIG_GENERATION), generation);
}

#[test]
fn a_command_and_hints_may_share_a_buffer() {
    let mut rig = Rig::probed();
    rig.balloon().start_hinting(true).unwrap();
    let queue = rig.queue(BalloonQueue::Hints);
    let at = rig.driver.put(&2u32.to_le_bytes());
    rig.driver.send(queue, &[MockDescriptor::readable(at, 4), pages(512, 512)]);
    assert_eq!(rig.discards(), [(512, 512)]);
    // A truncated command is ignored, and so are pages that come with it.
    let at = rig.driver.put(&[2, 0]);
    rig.driver.send(queue, &[MockDescriptor::readable(at, 2), pages(1024, 512)]);
    assert_eq!(rig.discards(), []);
    assert_eq!(rig.balloon().counters().bad_buffers, 1);
}

#[test]
fn hinting_needs_the_feature() {
    let rig = Rig::new(BalloonConfig { free_page_hinting: false, ..config() });
    let mut balloon = rig.balloon();
    assert!(matches!(balloon.start_hinting(true), Err(BalloonError::NotConfigured(_))));
    assert!(matches!(balloon.hinting_status(), Err(BalloonError::NotConfigured(_))));
    drop(balloon);
    let rig = Rig::new(config());
    assert!(matches!(rig.balloon().start_hinting(true), Err(BalloonError::NotAccepted(_))));
    assert!(matches!(rig.balloon().stop_hinting(), Err(BalloonError::NotAccepted(_))));
}
