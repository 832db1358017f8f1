// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that the host may be unable to bring back: huge pages of a pool.

use mm::backing::BackingKind;
use mm::guest_ram::GuestRam;
use mm::layout::MemoryLayout;

use super::super::roles::BalloonQueue;
use super::*;
use crate::virtio::DeviceLock;

impl Rig {
    /// Memory of huge pages of `unit` pages each.
    fn pooled(features: u64, unit: u64) -> Self {
        let mut rig = Self::new_pooled(config(), unit);
        let queues = super::super::roles::of(features).count();
        rig.driver.probe(features, u16::try_from(queues).unwrap());
        rig
    }

    fn set_pool_empty(&self, empty: bool) {
        self.host.lock().unwrap().pool_empty = empty;
    }

    fn restored(&self) -> Vec<(u64, u64)> {
        let mut host = self.host.lock().unwrap();
        host.restored.drain(..).map(|range| (range.start().0, range.pages().0)).collect()
    }

    fn post_deflate(&mut self, pfn: u32) {
        let at = self.driver.put(&pfn.to_le_bytes());
        self.driver.add(1, &[MockDescriptor::readable(at, 4)]);
        self.driver.notify(1);
        self.driver.run();
    }
}

#[test]
fn pages_are_restored_before_the_guest_has_them_back() {
    let mut rig = Rig::pooled(EVERYTHING, 512);
    rig.inflate(512..1024);
    assert_eq!(rig.inflate_blocks(&[3]), OK);
    assert_eq!(rig.discards(), [(512, 512), (1536, 512)]);
    rig.deflate([600]);
    assert_eq!(rig.restored(), [(600, 1)]);
    assert_eq!(rig.deflate_blocks(&[3]), OK);
    assert_eq!(rig.restored(), [(1536, 512)]);
}

#[test]
fn deflate_waits_while_the_pool_is_empty() {
    let mut rig = Rig::pooled(EVERYTHING, 512);
    rig.inflate(512..1024);
    rig.set_pool_empty(true);
    rig.post_deflate(600);
    assert_eq!(rig.driver.used(1), None);
    assert_eq!(rig.balloon().waiting_for_host(), Pages(1));
    for _ in 0..3 {
        rig.balloon().retry_now();
    }
    assert_eq!(rig.driver.used(1), None, "still empty");
    assert_eq!(rig.balloon().counters().deflate_waits, 1, "one wait, however often it looks");
    // Other queues continue.
    assert_eq!(rig.inflate_blocks(&[4]), OK);
    rig.set_pool_empty(false);
    rig.balloon().retry_now();
    rig.driver.run();
    assert!(rig.driver.used(1).is_some());
    assert_eq!(rig.balloon().waiting_for_host(), Pages(0));
    assert_eq!(rig.restored(), [(600, 1)]);
    rig.validate();
}

#[test]
fn block_deflate_waits_too_and_so_does_a_reset() {
    let mut rig = Rig::pooled(EVERYTHING, 512);
    assert_eq!(rig.inflate_blocks(&[2, 3]), OK);
    rig.set_pool_empty(true);
    let queue = rig.queue(BalloonQueue::Blocks);
    let raw = [&[2, 0, 0, 0, 1, 0, 0, 0][..], &1024u64.to_le_bytes()].concat();
    let request = rig.driver.put(&raw);
    let status = MockDescriptor::writable(rig.driver.put(&[0; 4]), 4);
    rig.driver.add(queue, &[MockDescriptor::readable(request, raw.len() as u32), status]);
    rig.driver.notify(queue);
    rig.driver.run();
    assert_eq!(rig.driver.used(queue), None);
    assert_eq!(rig.balloon().waiting_for_host(), Pages(512));
    // The guest may use all of its memory after the reset, which therefore waits for the host too.
    let (balloon, host) = (Arc::clone(&rig.balloon), Arc::clone(&rig.host));
    let other = std::thread::spawn(move || {
        while balloon.lock().waiting_for_host() < Pages(1024) {
            std::thread::yield_now();
        }
        host.lock().unwrap().pool_empty = false;
    });
    rig.driver.reset();
    other.join().unwrap();
    assert_eq!(rig.balloon().waiting_for_host(), Pages(0));
    let restored: u64 = rig.restored().iter().map(|(_, pages)| pages).sum();
    assert_eq!(restored, 1024, "what was in the balloon and what was on its way out");
}

/// However the pages of the balloon lie, a reset needs a list of blocks only, in rounds.
#[test]
fn a_reset_restores_scattered_pages_by_the_block() {
    let mut rig = Rig::pooled(EVERYTHING, 512);
    rig.inflate((512..2048).filter(|pfn| pfn % 2 == 0));
    rig.driver.reset();
    assert_eq!(rig.restored(), [(512, 512), (1024, 512), (1536, 512)]);
    rig.validate();
}

/// The guest takes such pages back without asking: they stay, and count as held.
#[test]
fn reports_and_hints_free_nothing_and_say_so() {
    let mut rig = Rig::pooled(EVERYTHING, 512);
    let block = MockDescriptor::writable(GuestAddress(1 << 21), 1 << 21);
    let queue = rig.queue(BalloonQueue::Reports);
    rig.driver.send(queue, &[block]);
    rig.balloon().start_hinting(true).unwrap();
    let queue = rig.queue(BalloonQueue::Hints);
    rig.send_bytes(queue, &2u32.to_le_bytes());
    rig.driver.send(queue, &[block]);
    assert_eq!(rig.discards(), []);
    let counters = rig.balloon().counters();
    for given in [counters.free_page_report, counters.free_page_hint] {
        assert_eq!((given.asked, given.freed, given.held), (2 << 20, 0, 2 << 20));
    }
}

#[test]
fn driver_that_does_not_tell_keeps_its_memory() {
    let mut rig = Rig::pooled(EVERYTHING & !feature::MUST_TELL_HOST, 512);
    rig.inflate(512..1024);
    assert_eq!(rig.inflate_blocks(&[3]), OK);
    assert_eq!(rig.discards(), []);
    let inflation = rig.balloon().counters().inflation;
    assert_eq!((inflation.freed, inflation.held), (0, 4 << 20));
}

#[test]
fn huge_pages_larger_than_a_block_go_back_when_all_of_them_is_in_the_balloon() {
    let mut rig = Rig::pooled(EVERYTHING, 1024);
    rig.inflate(1024..1536);
    rig.discards();
    rig.inflate(1536..2048);
    assert_eq!(rig.discards(), [(1024, 1024)]);
    assert_eq!(rig.inflate_blocks(&[0, 1]), OK);
    assert_eq!(rig.discards(), [(0, 1024)]);
    assert_eq!(rig.balloon().counters().inflation.asked, 8 << 20);
    rig.validate();
}

/// HugePages_Free less HugePages_Rsvd.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let figure = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    figure("HugePages_Free:") - figure("HugePages_Rsvd:")
}

/// On the host's own pool: another guest can allocate ballooned pages, and while it holds them, a
/// deflate waits.
#[test]
fn another_guest_can_have_what_the_balloon_was_given() {
    const BLOCKS: u64 = 8;
    let pooled = |blocks: u64| {
        let layout = MemoryLayout::new(Bytes(blocks << 21), Bytes(0)).unwrap();
        GuestRam::new(layout, BackingKind::Hugetlb2M)
    };
    let ram = match pooled(BLOCKS) {
        Ok(ram) => Arc::new(ram),
        Err(error) => return eprintln!("not run: {error}"),
    };
    let before = available();
    let balloon = Balloon::new(config(), Box::new(Arc::clone(&ram)), &many()).unwrap();
    let balloon = Arc::new(DeviceLock::new(balloon));
    let mem = Arc::clone(ram.memory());
    let driver = MockDriver::new(Arc::clone(&mem), balloon.clone(), DRIVER);
    let host = Arc::new(Mutex::new(Host::default()));
    let mut rig = Rig { driver, balloon, mem, host };
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    rig.write_page(600, 42);
    assert_eq!(rig.inflate_blocks(&[1, 2, 3]), OK);
    assert_eq!(available(), before + 3, "two of them were never touched");
    let inflation = rig.balloon().counters().inflation;
    assert_eq!((inflation.asked, inflation.freed), (6 << 20, 6 << 20));
    let other = pooled(available()).unwrap();
    rig.post_deflate(600);
    assert_eq!(rig.driver.used(1), None, "the pool is empty");
    assert_eq!(rig.balloon().waiting_for_host(), Pages(1));
    drop(other);
    rig.balloon().retry_now();
    rig.driver.run();
    assert!(rig.driver.used(1).is_some());
    // The guest's now, and the monitor can read it too.
    assert_eq!(rig.page(600), 0);
    rig.write_page(600, 43);
    assert_eq!(available(), before + 2);
    rig.driver.reset();
    rig.settle();
    assert_eq!(available(), before, "without a driver the guest has all of its memory");
}
