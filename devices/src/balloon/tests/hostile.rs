// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Misbehaving guests: the device ignores the input or fails, and the monitor survives.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

use super::*;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;

impl Rig {
    /// The device must have used the buffer, counted it as bad, and work on.
    fn expect_bad_buffer(&mut self, queue: u16, head: u16) {
        let before = self.balloon().counters().bad_buffers;
        self.driver.notify(queue);
        self.driver.run();
        assert_eq!(self.driver.used(queue), Some((head, 0)));
        assert_eq!(self.balloon().counters().bad_buffers, before + 1);
        assert!(!self.driver.needs_reset());
        self.inflate([600]);
        assert_eq!(self.balloon().ballooned(), Pages(1));
        self.deflate([600]);
        self.validate();
    }
}

#[test]
fn a_chain_that_loops_is_left_alone() {
    // All but statistics, whose buffers come back with the next poll only.
    for queue in [0, 1, 3, 4, 5, 6] {
        let mut rig = Rig::probed();
        let at = rig.driver.put(&600u32.to_le_bytes());
        let entry = MockDescriptor { flags: NEXT, next: 1, ..MockDescriptor::readable(at, 4) };
        rig.driver.write_descriptor(queue, 0, entry);
        rig.driver.write_descriptor(queue, 1, MockDescriptor { next: 0, ..entry });
        rig.driver.make_available(queue, 0);
        rig.expect_bad_buffer(queue, 0);
    }
}

#[test]
fn a_chain_that_leads_nowhere_is_left_alone() {
    let mut rig = Rig::probed();
    let at = rig.driver.put(&600u32.to_le_bytes());
    let entry = MockDescriptor { flags: NEXT, next: 60_000, ..MockDescriptor::readable(at, 4) };
    rig.driver.write_descriptor(0, 0, entry);
    rig.driver.make_available(0, 0);
    rig.expect_bad_buffer(0, 0);
}

#[test]
fn a_buffer_outside_ram_is_left_alone() {
    for addr in [8 << 21, (8 << 21) - 2, u64::MAX - 2, 1 << 52] {
        let mut rig = Rig::probed();
        let head = rig.driver.add(0, &[MockDescriptor::readable(GuestAddress(addr), 4)]);
        rig.expect_bad_buffer(0, head);
    }
}

#[test]
fn a_buffer_of_gigabytes_costs_nothing() {
    let mut rig = Rig::probed();
    let all_ram = MockDescriptor::readable(GuestAddress(0), 7 << 21);
    let head = rig.driver.add(0, &[all_ram]);
    rig.expect_bad_buffer(0, head);
    let mut rig = Rig::probed();
    let many: Vec<MockDescriptor> = (0..30).map(|_| all_ram).collect();
    let head = rig.driver.add(1, &many);
    rig.expect_bad_buffer(1, head);
}

#[test]
fn readable_after_writable_is_left_alone() {
    let mut rig = Rig::probed();
    let at = rig.driver.put(&600u32.to_le_bytes());
    let head =
        rig.driver.add(0, &[MockDescriptor::writable(at, 4), MockDescriptor::readable(at, 4)]);
    rig.expect_bad_buffer(0, head);
}

#[test]
fn an_indirect_table_longer_than_the_queue_is_left_alone() {
    let mut rig = Rig::probed();
    let table = rig.driver.alloc(65_535 * 16);
    let at = rig.driver.put(&600u32.to_le_bytes());
    for entry in 0..65_535u64 {
        let addr = GuestAddress(table.0 + entry * 16);
        rig.mem.write_obj([at.0, 4 | u64::from(NEXT) << 32 | (entry + 1) << 48], addr).unwrap();
    }
    let indirect = MockDescriptor {
        addr: table.0,
        len: 65_535 * 16,
        flags: VRING_DESC_F_INDIRECT as u16,
        next: 0,
    };
    let head = rig.driver.add(0, &[indirect]);
    rig.expect_bad_buffer(0, head);
}

#[test]
fn empty_and_ragged_buffers_are_taken_for_what_they_hold() {
    let mut rig = Rig::probed();
    rig.send_bytes(0, &[]);
    rig.send_bytes(0, &[88, 2, 0, 0, 9, 9, 9]);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
    rig.validate();
}

#[test]
fn a_page_number_may_be_split_over_descriptors() {
    let mut rig = Rig::probed();
    let at = rig.driver.put(&[600u32.to_le_bytes(), 601u32.to_le_bytes()].concat());
    let part = |offset: u64, len| MockDescriptor::readable(GuestAddress(at.0 + offset), len);
    rig.driver.send(0, &[part(0, 3), part(3, 0), part(3, 5)]);
    rig.settle();
    assert_eq!(rig.discards(), [(600, 2)]);
}

#[test]
fn pages_outside_ram_are_refused_and_the_others_taken() {
    let mut rig = Rig::probed();
    rig.inflate([600, u32::MAX, 8 * 512, 16 * 512 + 768, 601, 12 * 512]);
    rig.settle();
    assert_eq!(rig.discards(), [(600, 2)]);
    assert_eq!(rig.balloon().counters().refused_pages, 4);
    rig.deflate([u32::MAX, 600, 8 * 512]);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
    rig.validate();
}

#[test]
fn a_run_across_the_hole_is_clipped() {
    let mut rig = Rig::probed();
    rig.inflate(16 * 512 - 100..16 * 512 + 100);
    rig.settle();
    assert_eq!(rig.discards(), [(16 * 512, 100)]);
    rig.validate();
}

#[test]
fn the_same_page_twice_counts_once() {
    let mut rig = Rig::probed();
    rig.inflate([600, 600, 600]);
    rig.inflate([600]);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
    assert_eq!(rig.balloon().counters().refused_pages, 3);
    rig.deflate([600, 600]);
    rig.deflate([600]);
    assert_eq!(rig.balloon().ballooned(), Pages(0));
    rig.settle();
    assert_eq!(rig.discards(), []);
    rig.validate();
}

#[test]
fn a_flood_of_notifications_is_as_many_rounds_as_there_is_work() {
    let mut rig = Rig::probed();
    for _ in 0..100_000 {
        rig.driver.notify(0);
        rig.driver.notify(200);
        rig.driver.write(crate::transport::register::QUEUE_NOTIFY, u32::MAX);
    }
    assert_eq!(rig.driver.run(), 1);
    rig.inflate([600]);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
}

#[test]
fn a_full_ring_is_one_round() {
    let mut rig = Rig::probed();
    for pfn in 600..664u32 {
        let at = rig.driver.put(&pfn.to_le_bytes());
        rig.driver.add(0, &[MockDescriptor::readable(at, 4)]);
    }
    rig.driver.notify(0);
    assert_eq!(rig.driver.run(), 1);
    assert_eq!(rig.balloon().ballooned(), Pages(64));
}

#[test]
fn an_available_index_out_of_bounds_fails_the_device_until_reset() {
    let mut rig = Rig::probed();
    rig.driver.interrupts();
    rig.driver.set_available_index(0, 5000);
    rig.driver.notify(0);
    rig.driver.run();
    assert!(rig.driver.needs_reset());
    assert!(rig.driver.interrupts() > 0);
    // Nothing moves it but a reset.
    rig.driver.set_available_index(0, 0);
    rig.driver.notify(0);
    rig.driver.notify(1);
    rig.driver.run();
    assert!(rig.driver.needs_reset());
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    rig.inflate([600]);
    assert_eq!(rig.balloon().ballooned(), Pages(1));
}

#[test]
fn a_head_out_of_bounds_fails_the_device() {
    let mut rig = Rig::probed();
    rig.driver.make_available(0, 64);
    rig.driver.notify(0);
    rig.driver.run();
    assert!(rig.driver.needs_reset());
}

#[test]
fn a_stopped_queue_is_not_touched() {
    let mut rig = Rig::probed();
    let at = rig.driver.put(&600u32.to_le_bytes());
    rig.driver.add(0, &[MockDescriptor::readable(at, 4)]);
    rig.driver.write(crate::transport::register::QUEUE_SEL, 0);
    rig.driver.write(crate::transport::register::QUEUE_READY, 0);
    assert_eq!(rig.driver.read(crate::transport::register::QUEUE_READY), 0);
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(rig.driver.used(0), None);
    assert!(!rig.driver.needs_reset());
    assert_eq!(rig.balloon().ballooned(), Pages(0));
}
