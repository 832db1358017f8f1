// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device from its driver's side.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{
    BucketConfig, Deadline, DeviceLock, GuestMemoryMmap, Progress, RateLimiter, VirtioDevice,
};

const DRIVER: std::ops::Range<u64> = 0x1000..0x40_0000;

struct Rig {
    driver: MockDriver,
    device: Arc<DeviceLock<Entropy>>,
    handle: EntropyHandle,
    mem: Arc<GuestMemoryMmap>,
}

fn rig(limiter: RateLimiter) -> Rig {
    let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
    let device = Entropy::new(limiter).unwrap();
    let handle = device.handle();
    let device = Arc::new(DeviceLock::new(device));
    let mut driver = MockDriver::new(Arc::clone(&mem), device.clone(), DRIVER);
    driver.probe(u64::MAX, 1);
    Rig { driver, device, handle, mem }
}

impl Rig {
    fn request(&mut self, len: u32) -> (Vec<u8>, u32) {
        let at = self.driver.alloc(len.into());
        let written = self.driver.send(0, &[MockDescriptor::writable(at, len)]);
        let mut bytes = vec![0; len as usize];
        self.mem.read_slice(&mut bytes, at).unwrap();
        (bytes, written)
    }
}

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut rig = rig(RateLimiter::unlimited());
    let (first, written) = rig.request(64);
    assert_eq!(written, 64);
    let (second, _) = rig.request(64);
    assert_ne!(first, second);
    assert!(first.iter().any(|byte| *byte != 0));
    assert_eq!(rig.handle.counters().bytes.load(Ordering::Relaxed), 128);
}

#[test]
fn a_large_buffer_is_filled_in_part() {
    let mut rig = rig(RateLimiter::unlimited());
    let (bytes, written) = rig.request(100_000);
    assert_eq!(written, 64 << 10);
    assert!(bytes[64 << 10..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_buffer_may_be_cut_into_any_descriptors() {
    let mut rig = rig(RateLimiter::unlimited());
    let at = rig.driver.alloc(64 << 10);
    let pieces = |count, len| -> Vec<_> {
        let pieces = (0..count).map(|nth| GuestAddress(at.0 + 1000 * nth));
        pieces.map(|at| MockDescriptor::writable(at, len)).collect()
    };
    for (count, len) in [(1, 0), (1, 1), (2, 5), (64, 40)] {
        let zeroes = vec![0; 64 << 10];
        rig.mem.write_slice(&zeroes, at).unwrap();
        let total = count as u32 * len;
        let (table, behind) = (rig.driver.put_table(&pieces(count, len)), at.0 + 1000 * count);
        assert_eq!(rig.driver.send(0, &[table]), total);
        let mut bytes = zeroes;
        rig.mem.read_slice(&mut bytes, at).unwrap();
        for (nth, piece) in bytes[..(behind - at.0) as usize].chunks(1000).enumerate() {
            assert!(piece[len as usize..].iter().all(|byte| *byte == 0), "behind piece {nth}");
            // By chance once in 2^40 pieces.
            assert!(len < 5 || piece[..len as usize].iter().any(|byte| *byte != 0), "piece {nth}");
        }
    }
    // More descriptors than the queue has.
    let long = rig.driver.put_table(&pieces(65, 40));
    assert_eq!(rig.driver.send(0, &[long]), 0);
}

#[test]
fn a_round_ends_when_its_work_is_done() {
    let mut rig = rig(RateLimiter::unlimited());
    let at = rig.driver.alloc(64 << 10);
    for _ in 0..32 {
        rig.driver.add(0, &[MockDescriptor::writable(at, 64 << 10)]);
    }
    let mut deadline = Deadline::of_work(4 << 20);
    let progress = rig.device.lock().process(0, &mut deadline).unwrap();
    assert_eq!(progress, Progress::More);
    assert!(deadline.spent() < 5 << 20, "{}", deadline.spent());
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(0)).count(), 32);
}

#[test]
fn the_rate_limit_puts_buffers_off_and_loses_none() {
    let day = Duration::from_secs(86_400);
    let bytes = BucketConfig { size: 96, refill: day, one_time_burst: 0 };
    let mut rig = rig(RateLimiter::new(Some(bytes), None, Instant::now()));
    assert_eq!(rig.request(64).1, 64);
    let at = rig.driver.alloc(64);
    let head = rig.driver.add(0, &[MockDescriptor::writable(at, 64)]);
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(rig.driver.used(0), None);
    assert_eq!(rig.handle.counters().rate_limiter_throttled.load(Ordering::Relaxed), 1);
    // The limit is lifted, and the timer goes off.
    rig.device.lock().set_limiter(RateLimiter::unlimited());
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(rig.driver.used(0), Some((head, 64)));
}

#[test]
fn buffers_without_room_come_back_empty() {
    let mut rig = rig(RateLimiter::unlimited());
    let at = rig.driver.put(&[1; 16]);
    assert_eq!(rig.driver.send(0, &[MockDescriptor::readable(at, 16)]), 0);
    assert_eq!(rig.driver.send(0, &[MockDescriptor::writable(GuestAddress(u64::MAX - 3), 64)]), 0);
    assert_eq!(rig.handle.counters().event_fails.load(Ordering::Relaxed), 2);
    assert!(!rig.driver.needs_reset());
    assert_eq!(rig.request(16).1, 16);
}
