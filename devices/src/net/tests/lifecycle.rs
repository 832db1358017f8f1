// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits, queue pairs, the responder, resets.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::{BucketConfig, BucketUpdate};

fn bucket(size: u64) -> BucketConfig {
    BucketConfig { size, refill: Duration::from_secs(86_400), one_time_burst: 0 }
}

#[test]
fn limits_hold_frames_back_in_both_directions_until_they_are_lifted() {
    let now = Instant::now();
    let limiter = || RateLimiter::new(None, Some(bucket(2)), now);
    let setup = Setup { rx_limiter: limiter(), tx_limiter: limiter(), ..Setup::default() };
    let mut rig = setup.start();
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    for seed in 0..3 {
        rig.arrive(0, &pattern(seed, 100));
    }
    assert_eq!(std::iter::from_fn(|| rig.driver.used(RX)).count(), 2);
    rig.send(&pattern(0, 60));
    rig.send(&pattern(1, 60));
    let at = rig.driver.put(&[0; 72]);
    let head = rig.driver.add(TX, &[MockDescriptor::readable(at, 72)]);
    rig.driver.notify(TX);
    rig.driver.run();
    assert_eq!(rig.driver.used(TX), None);
    assert!(count(&rig.handle.counters().rx_rate_limiter_throttled) > 0);
    assert_eq!(count(&rig.handle.counters().tx_rate_limiter_throttled), 1);
    let none = (BucketUpdate::Keep, BucketUpdate::Set(bucket(0)));
    rig.handle.limit(none, none);
    rig.tell(0);
    assert_eq!(rig.driver.used(RX).unwrap().1, 112);
    assert_eq!(rig.driver.used(TX).unwrap().0, head);
}

#[test]
fn queues_that_were_held_back_are_emptied_though_a_round_ends_early() {
    let now = Instant::now();
    let limiter = || RateLimiter::new(None, Some(bucket(2)), now);
    // Two frames a round.
    let deadline = || Deadline::of_work(2 * Deadline::COMMAND);
    let setup =
        Setup { pairs: 2, rx_limiter: limiter(), tx_limiter: limiter(), ..Setup::default() };
    let mut rig = Setup { deadline, features: NO_LARGE, ..setup }.start();
    for pair in 0..2u16 {
        let at = rig.driver.put(&[0; 72]);
        for _ in 0..12 {
            rig.driver.add(2 * pair + 1, &[MockDescriptor::readable(at, 72)]);
            let to = rig.driver.alloc(2048);
            rig.driver.add(2 * pair, &[MockDescriptor::writable(to, 2048)]);
            rig.wires[usize::from(pair)].send(&[0; 72]).unwrap();
        }
        (0..2).for_each(|direction| rig.driver.notify(2 * pair + direction));
    }
    rig.driver.run();
    let mut used = |queue| std::iter::from_fn(|| rig.driver.used(queue)).count();
    let held_back: Vec<_> = (0..4).map(&mut used).collect();
    assert_eq!((held_back[0] + held_back[2], held_back[1] + held_back[3]), (2, 2));
    let none = (BucketUpdate::Keep, BucketUpdate::Set(bucket(0)));
    rig.handle.limit(none, none);
    // Handles the device's event.
    rig.tell(0);
    let mut used = |queue| std::iter::from_fn(|| rig.driver.used(queue)).count();
    let rest: Vec<_> = (0..4).map(|queue| used(queue) + held_back[queue as usize]).collect();
    assert_eq!(rest, [12; 4]);
}

#[test]
fn bytes_received_are_paid_off_though_their_number_comes_late() {
    let limiter = RateLimiter::new(Some(bucket(500)), None, Instant::now());
    let mut rig = Setup { rx_limiter: limiter, ..Setup::default() }.start();
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    rig.arrive(0, &pattern(0, 1000));
    rig.arrive(0, &pattern(1, 10));
    assert_eq!(std::iter::from_fn(|| rig.driver.used(RX)).count(), 1);
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    let mut rig = Setup { pairs: 3, ..Setup::default() }.start();
    let mut command = |bytes: &[u8]| {
        let at = rig.driver.put(bytes);
        let answer = rig.driver.put(&[0xaa]);
        let chain =
            [MockDescriptor::readable(at, bytes.len() as u32), MockDescriptor::writable(answer, 1)];
        assert_eq!(rig.driver.send(6, &chain), 1);
        rig.mem.read_obj::<u8>(answer).unwrap()
    };
    assert_eq!(command(&[4, 0, 3, 0]), 0);
    assert_eq!(command(&[4, 0, 1, 0]), 0);
    for bad in [&[4, 0, 0, 0][..], &[4, 0, 4, 0], &[4, 1, 1, 0], &[1, 0, 1, 0], &[4, 0, 1]] {
        assert_eq!(command(bad), 1, "{bad:?}");
    }
    // Each change is a system call for each pair, after which the clock is looked at.
    let work = rig.driver.transport().most_work();
    assert!(work >= 3 * Deadline::SYSCALL, "{work}");
    // Each pair has its own wire.
    for pair in 0..3u16 {
        let at = rig.driver.put(&[pair as u8; 80]);
        rig.driver.send(2 * pair + 1, &[MockDescriptor::readable(at, 80)]);
        assert_eq!(rig.left(pair.into()), Some(vec![pair as u8; 68]));
    }
}

#[test]
fn commands_of_any_shape_are_answered_or_come_back() {
    const CONTROL: u16 = 4;
    let mut rig = Setup { pairs: 2, ..Setup::default() }.start();
    let command = rig.driver.put(&[4, 0, 2, 0]);
    let answer = rig.driver.put(&[0xaa; 2]);
    let from = |offset, len| MockDescriptor::readable(GuestAddress(command.0 + offset), len);
    let to = |offset, len| MockDescriptor::writable(GuestAddress(answer.0 + offset), len);
    let outside = GuestAddress(RAM as u64 - 1);
    for (chain, written, expected) in [
        (vec![from(0, 1), from(1, 2), from(3, 0), from(3, 1), to(0, 1)], 1, 0),
        (vec![from(0, 4), to(0, 0), to(1, 1)], 1, 0xaa),
        (vec![from(0, 3), to(0, 2)], 1, 1),
        (vec![to(0, 2)], 1, 1),
        (vec![from(0, 4)], 0, 0xaa),
        (vec![to(0, 1), from(0, 4)], 0, 0xaa),
        (vec![from(0, 4), MockDescriptor::writable(outside, 2)], 0, 0xaa),
        (vec![MockDescriptor::readable(outside, 4), to(0, 1)], 0, 0xaa),
        (vec![from(0, 1); 40], 0, 0xaa),
    ] {
        rig.mem.write_slice(&[0xaa; 2], answer).unwrap();
        assert_eq!(rig.driver.send(CONTROL, &chain), written, "{chain:?}");
        assert_eq!(rig.mem.read_obj::<u8>(answer).unwrap(), expected, "{chain:?}");
    }
    assert!(!rig.driver.needs_reset());
}

#[test]
fn without_mq_the_control_queue_is_the_third() {
    let features = !feature::MQ;
    let mut rig = Setup { pairs: 2, features, ..Setup::default() }.start();
    let at = rig.driver.put(&[4, 0, 1, 0]);
    let answer = rig.driver.put(&[0xaa]);
    rig.driver.send(2, &[MockDescriptor::readable(at, 4), MockDescriptor::writable(answer, 1)]);
    assert_eq!(rig.mem.read_obj::<u8>(answer).unwrap(), 0);
}

/// Answers frames that begin with its mark, backwards.
struct Echo(Vec<Vec<u8>>);

impl Responder for Echo {
    fn wants(&self, start: &[u8]) -> bool {
        start.first() == Some(&0x77)
    }

    fn take(&mut self, frame: &[u8], _now: Instant, _deadline: &mut Deadline) {
        self.0.push(frame.iter().rev().copied().collect());
    }

    fn give(&mut self, frame: &mut Vec<u8>, _now: Instant, _deadline: &mut Deadline) -> bool {
        match self.0.pop() {
            Some(answer) => {
                *frame = answer;
                true
            }
            None => false,
        }
    }

    fn has_frames(&self) -> bool {
        !self.0.is_empty()
    }

    fn next_deadline(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {
        self.0.clear();
    }
}

#[test]
fn the_responder_has_its_frames_and_the_wire_the_others() {
    let mut rig = Setup { responder: Some(Box::new(Echo(Vec::new()))), ..Setup::default() }.start();
    let (_, at) = rig.post(4096, 3);
    for _ in 0..20 {
        rig.post(4096, 1);
    }
    rig.send(&[0x11, 1, 2, 3]);
    assert_eq!(rig.left(0), Some(vec![0x11, 1, 2, 3]));
    rig.send(&[0x77, 1, 2, 3]);
    assert_eq!(rig.left(0), None);
    assert_eq!(rig.driver.used(RX).unwrap().1, 16);
    assert_eq!(rig.bytes(at, 16), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 2, 1, 0x77]);
}

#[test]
fn answers_that_a_round_had_no_time_for_follow() {
    // Two frames a round.
    let deadline = || Deadline::of_work(2 * Deadline::COMMAND);
    let responder = Some(Box::new(Echo(Vec::new())) as Box<dyn Responder>);
    let mut rig = Setup { responder, deadline, features: NO_LARGE, ..Setup::default() }.start();
    let at = rig.driver.put(&[[0; HEADER_LEN].as_slice(), &[0x77; 60]].concat());
    for _ in 0..12 {
        rig.post(2048, 1);
        rig.driver.add(TX, &[MockDescriptor::readable(at, 72)]);
    }
    rig.driver.notify(TX);
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(TX)).count(), 12);
    assert_eq!(std::iter::from_fn(|| rig.driver.used(RX)).count(), 12);
}

#[test]
fn a_reset_forgets_buffers_and_keeps_frames() {
    let mut rig = Rig::new();
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    rig.tell(0);
    rig.driver.reset();
    rig.wires[0].send(&[0; 100]).unwrap();
    rig.tell(0);
    rig.driver.probe(u64::MAX, 2);
    for _ in 0..40 {
        rig.post(4096, 1);
    }
    rig.driver.notify(RX);
    rig.driver.run();
    assert_eq!(rig.driver.used(RX).unwrap().1, 100);
}
