// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Misbehaving guests of an interface with vhost-net, by the host's kernel itself. Needs
//! /dev/vhost-net and the right to create a TAP; without them each test says so and does nothing.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::transport::register;

/// An upper bound for a machine under load, and no expectation of time.
const LIMIT: Duration = Duration::from_secs(60);
/// Two regions of guest memory that touch.
const REGION: u64 = 8 << 20;

/// A driver whose queues the kernel processes.
struct KernelRig {
    driver: MockDriver,
    device: Arc<DeviceLock<Net>>,
    handle: NetHandle,
}

impl KernelRig {
    /// With a TAP of its own, if this host has what it takes.
    fn new(number: u8) -> Option<Self> {
        let ranges = [(GuestAddress(0), REGION as usize), (GuestAddress(REGION), 1 << 20)];
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let vhost = match VhostNet::open(&mem, 1) {
            Ok(vhost) => vhost,
            Err(error) => {
                eprintln!("nothing is tested: {error}");
                return None;
            }
        };
        let taps = match Tap::open(&format!("bk{number}x{}", std::process::id()), 1) {
            Ok(taps) => taps,
            Err(error) => {
                eprintln!("nothing is tested: {error}");
                return None;
            }
        };
        let device = Net::new(NetConfig {
            links: taps.into_iter().map(Link::Tap).collect(),
            mac: None,
            mtu: None,
            rx_limiter: RateLimiter::unlimited(),
            tx_limiter: RateLimiter::unlimited(),
            responder: None,
            vhost: Some(vhost),
        });
        let device = device.unwrap();
        let handle = device.handle();
        let device = Arc::new(DeviceLock::new(device));
        let mut driver = MockDriver::new(mem, device.clone(), DRIVER);
        driver.probe(u64::MAX, 2);
        Some(Self { driver, device, handle })
    }

    /// Queues in the kernel.
    fn running(&self) -> u64 {
        count(&self.handle.counters().vhost_queues)
    }

    /// Waits until the kernel has reported an invalid ring, and lets the device look.
    fn kernel_reports(&self) {
        let events = self.device.lock().sources().unwrap();
        let mut fds: Vec<_> =
            events.iter().map(|event| PollFd::new(&event.fd, PollFlags::IN)).collect();
        let limit = Timespec::try_from(LIMIT).unwrap();
        assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "the kernel has reported nothing");
        self.driver.transport().process_queue(0);
    }

    /// The kernel takes a frame from the transmit queue.
    fn works(&mut self) {
        let at = self.driver.put(&[0; 72]);
        let head = self.driver.add(TX, &[MockDescriptor::readable(at, 72)]);
        self.driver.notify(TX);
        let begin = Instant::now();
        loop {
            if let Some(used) = self.driver.used(TX) {
                return assert_eq!(used, (head, 0));
            }
            assert!(begin.elapsed() < LIMIT, "the kernel does not process the queue");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a driver does to its transmit queue; it may use the bytes at an address for a frame.
type Break<'a> = dyn Fn(&mut MockDriver, GuestAddress) + 'a;

#[test]
fn contents_of_rings_that_the_kernel_rejects_end_in_a_reset() {
    let Some(mut rig) = KernelRig::new(0) else { return };
    rig.works();
    let frame = |at| MockDescriptor::readable(at, 72);
    let outside = frame(GuestAddress(REGION + (1 << 20) - 71));
    let breaks: [(&str, &Break<'_>); 8] = [
        ("an index far ahead", &|driver, _| driver.set_available_index(TX, 1000)),
        ("a head that is no descriptor", &|driver, _| driver.make_available(TX, 64)),
        ("a frame outside RAM", &|driver, _| {
            driver.add(TX, &[outside]);
        }),
        ("a loop", &|driver, at| {
            let head = driver.add(TX, &[frame(at)]);
            driver.write_descriptor(TX, head, MockDescriptor { flags: 1, next: head, ..frame(at) });
        }),
        ("a next descriptor beyond the table", &|driver, at| {
            let head = driver.add(TX, &[frame(at)]);
            driver.write_descriptor(TX, head, MockDescriptor { flags: 1, next: 64, ..frame(at) });
        }),
        ("a table in a table", &|driver, at| {
            let inner = driver.put_table(&[frame(at)]);
            let outer = driver.put_table(&[inner]);
            driver.add(TX, &[outer]);
        }),
        ("a table outside RAM", &|driver, _| {
            let table = MockDescriptor { flags: 4, len: 16, ..outside };
            driver.add(TX, &[table]);
        }),
        ("a frame that the device is to write", &|driver, at| {
            driver.add(TX, &[MockDescriptor::writable(at, 72)]);
        }),
    ];
    for (what, breaks) in breaks {
        let at = rig.driver.put(&[0; 72]);
        breaks(&mut rig.driver, at);
        rig.driver.notify(TX);
        rig.kernel_reports();
        assert!(rig.driver.needs_reset(), "{what}");
        assert_eq!(rig.running(), 0, "{what}");
        // A reset, and everything works again.
        rig.driver.probe(u64::MAX, 2);
        assert_eq!(rig.running(), 2, "{what}");
        rig.works();
    }
}

#[test]
fn a_ring_at_an_invalid_address_is_refused_and_the_others_work() {
    let Some(mut rig) = KernelRig::new(1) else { return };
    let end = REGION + (1 << 20);
    for low in [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW] {
        // Outside RAM, at its end, over its edge, in two regions, misaligned.
        for addr in [0xffff_ffff_ffff_f000, end, end - 16, REGION - 16, 0x10_0001] {
            rig.driver.negotiate(u64::MAX);
            rig.driver.set_up_queue(TX);
            rig.driver.write(register::QUEUE_SEL, RX.into());
            for (offset, good) in [
                (register::QUEUE_DESC_LOW, 0x10_0000),
                (register::QUEUE_DRIVER_LOW, 0x10_1000),
                (register::QUEUE_DEVICE_LOW, 0x10_2000),
            ] {
                let addr = if offset == low { addr } else { good };
                rig.driver.write(offset, (addr & 0xffff_ffff) as u32);
                rig.driver.write(offset + 4, (addr >> 32) as u32);
            }
            rig.driver.write(register::QUEUE_NUM, 64);
            rig.driver.write(register::QUEUE_READY, 1);
            assert_eq!(rig.driver.read(register::QUEUE_READY), 0, "{low:#x}: {addr:#x}");
            // The other queue works if the driver goes on.
            rig.driver.start();
            assert!(!rig.driver.needs_reset());
            assert_eq!(rig.running(), 1);
        }
    }
    rig.driver.probe(u64::MAX, 2);
    assert_eq!(rig.running(), 2);
    rig.works();
}
