// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every virtio device behind the same transport: it has what it offers, a reset works from every
//! state that a driver can cause, and a round ends when its deadline passes.

use std::sync::Arc;
use std::time::Duration;

use devices::balloon::{Balloon, BalloonConfig};
use devices::block::{BlockConfig, BlockDevice, CacheType, DiskImage, IoEngine};
use devices::display::{Headless, Size};
use devices::entropy::Entropy;
use devices::gpu::{AnonymousMemory, Gpu, GpuLimits, GpuParts, GpuSettings};
use devices::net::{FrameStream, Link, Net, NetConfig, Tap};
use devices::transport::mock::{MockDescriptor, MockDriver};
use devices::virtio::{Deadline, DeviceLock, Progress, RateLimiter, SharedDevice};
use devices::vsock::{MAX_CONNECTIONS, Vsock, VsockConfig};
use mm::backing::BackingKind;
use mm::budget::Budget;
use mm::guest_ram::GuestRam;
use mm::layout::MemoryLayout;
use mm::units::{Bytes, PAGE_SIZE};
use proptest::prelude::*;

/// virtio 1.3, section 6.
const VERSION_1: u64 = 1 << 32;
const RAM: u64 = 32 << 20;
/// Rings and buffers of the driver; the rest of RAM is what a device may be told to take.
const AREA: std::ops::Range<u64> = PAGE_SIZE..4 << 20;

/// A device, and a driver that has not found it yet.
struct Rig {
    name: &'static str,
    device: SharedDevice,
    driver: MockDriver,
}

impl Rig {
    fn new(
        name: &'static str,
        deadline: fn() -> Deadline,
        make: impl FnOnce(&Arc<GuestRam>) -> SharedDevice,
    ) -> Self {
        let layout = MemoryLayout::new(Bytes(RAM), Bytes(0)).unwrap();
        let ram = Arc::new(GuestRam::new(layout, BackingKind::Small).unwrap());
        let device = make(&ram);
        let mem = Arc::clone(ram.memory());
        let driver = MockDriver::with_deadline(mem, Arc::clone(&device), AREA, deadline);
        Self { name, device, driver }
    }

    fn queues(&self) -> u16 {
        self.device.lock().queue_sizes().len().try_into().unwrap()
    }

    /// From reset to DRIVER_OK, with everything that is offered and with all queues.
    fn probe(&mut self) {
        let queues = self.queues();
        self.driver.probe(u64::MAX, queues);
    }
}

/// All devices, each with everything that it can offer.
fn all() -> [Rig; 7] {
    all_with(Deadline::new)
}

/// The same, each round with a deadline of `deadline`'s.
fn all_with(deadline: fn() -> Deadline) -> [Rig; 7] {
    [
        Rig::new("balloon", deadline, |ram| {
            let config = BalloonConfig {
                stats_interval: Duration::from_secs(1),
                free_page_hinting: true,
                free_page_reporting: true,
                ..BalloonConfig::default()
            };
            let balloon = Balloon::new(
                config,
                Box::new(Arc::clone(ram)),
                &Budget::count("balloon-mappings", 1 << 15),
            )
            .unwrap();
            Arc::new(DeviceLock::new(balloon))
        }),
        Rig::new("gpu", deadline, |_| {
            let mode = Size::new(64, 48);
            let settings = GpuSettings {
                scanouts: 2,
                mode,
                limits: GpuLimits::default(),
                window: None,
                cma: Vec::new(),
            };
            let budget = Budget::bytes("gpu", 64 << 20);
            let (display, _) = Headless::new(Arc::clone(&budget));
            let parts = GpuParts {
                host_memory: Box::new(AnonymousMemory),
                window: None,
                display: Box::new(display),
                budget,
                mappings: Budget::count("gpu-mappings", 16),
            };
            Arc::new(DeviceLock::new(Gpu::new(settings, parts).unwrap()))
        }),
        Rig::new("block", deadline, |_| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let config = BlockConfig {
                image: DiskImage::raw(file, false).unwrap(),
                cache: CacheType::Writeback,
                engine: IoEngine::Async,
                limiter: RateLimiter::unlimited(),
                queues: 2,
                workers: 1,
            };
            Arc::new(DeviceLock::new(BlockDevice::new(config).unwrap()))
        }),
        Rig::new("net", deadline, |_| {
            let taps = (0..2).map(|_| {
                let (ours, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                Link::Tap(Tap::from_socket(ours.into()))
            });
            let config = NetConfig {
                links: taps.collect(),
                mac: Some([2, 0, 0, 0, 0, 1]),
                mtu: Some(1500),
                rx_limiter: RateLimiter::unlimited(),
                tx_limiter: RateLimiter::unlimited(),
                responder: None,
                vhost: None,
            };
            Arc::new(DeviceLock::new(Net::new(config).unwrap()))
        }),
        Rig::new("net over a stream", deadline, |_| {
            let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
            let config = NetConfig {
                links: vec![Link::Stream(FrameStream::new(ours.into()))],
                mac: None,
                mtu: None,
                rx_limiter: RateLimiter::unlimited(),
                tx_limiter: RateLimiter::unlimited(),
                responder: None,
                vhost: None,
            };
            Arc::new(DeviceLock::new(Net::new(config).unwrap()))
        }),
        Rig::new("vsock", deadline, |_| {
            // The name goes; the socket listens on.
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let config =
                VsockConfig { guest_cid: 3, listener, max_connections: MAX_CONNECTIONS, path };
            Arc::new(DeviceLock::new(Vsock::new(config).unwrap()))
        }),
        Rig::new("entropy", deadline, |_| {
            Arc::new(DeviceLock::new(Entropy::new(RateLimiter::unlimited()).unwrap()))
        }),
    ]
}

#[test]
fn what_is_offered_is_well_formed_and_stays() {
    for mut rig in all() {
        let offered = rig.driver.offered();
        assert!(offered & VERSION_1 != 0, "{} is of another time", rig.name);
        assert_eq!(offered, rig.device.lock().features(), "{}", rig.name);
        let sizes = rig.device.lock().queue_sizes().to_vec();
        assert!(!sizes.is_empty(), "{}", rig.name);
        assert!(sizes.iter().all(|size| size.is_power_of_two() && *size <= 32_768), "{sizes:?}");
        rig.probe();
        rig.driver.reset();
        assert_eq!(rig.driver.offered(), offered, "{}", rig.name);
        assert_eq!(rig.device.lock().queue_sizes(), sizes, "{}", rig.name);
    }
}

#[test]
fn beyond_configuration_space_there_is_zero() {
    for rig in all() {
        let mut device = rig.device.lock();
        for offset in [4096, u64::from(u32::MAX), u64::MAX - 3, u64::MAX] {
            device.write_config(offset, &[0xff; 8]);
            let mut data = [0xa5; 8];
            device.read_config(offset, &mut data);
            assert_eq!(data, [0; 8], "{} at {offset:#x}", rig.name);
        }
        // Of any width and at any place.
        for (offset, len) in (0..64).flat_map(|offset| (0..9).map(move |len| (offset, len))) {
            device.write_config(offset, &vec![0xff; len]);
            device.read_config(offset, &mut vec![0; len]);
        }
    }
}

#[test]
fn it_may_be_reset_and_notified_at_any_time() {
    for mut rig in all() {
        let queues = rig.queues();
        let notify_all = |rig: &Rig| {
            for queue in [0, 1, queues - 1, queues, u16::MAX] {
                let done = rig.device.lock().process(queue, &mut Deadline::new());
                assert_eq!(done.unwrap(), Progress::Done, "{}", rig.name);
            }
        };
        notify_all(&rig);
        rig.device.lock().reset();
        for _ in 0..3 {
            rig.probe();
            notify_all(&rig);
            assert!(!rig.driver.needs_reset(), "{}", rig.name);
            rig.driver.reset();
            notify_all(&rig);
        }
    }
}

/// One buffer: which queue, what is in it, and how much room there is for an answer.
fn buffers() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>, u16)>> {
    // Small numbers are commands, counts and page numbers.
    let word = prop_oneof![Just(0u32), 1u32..16, 0x100u32..0x110, Just(u32::MAX), any::<u32>()];
    let bytes = prop::collection::vec(word, 0..24)
        .prop_map(|words| words.into_iter().flat_map(u32::to_le_bytes).collect());
    prop::collection::vec((any::<prop::sample::Index>(), bytes, 0u16..600), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A buffer comes back once or is kept, never for more than there was room; after any
    /// contents, the next driver finds the device as the first one did.
    #[test]
    fn no_buffer_is_too_much(buffers in buffers()) {
        for mut rig in all() {
            rig.probe();
            let mut out = std::collections::BTreeMap::new();
            for (queue, bytes, room) in &buffers {
                let queue = queue.index(rig.queues().into()) as u16;
                if rig.driver.needs_reset() || rig.driver.room(queue) < 2 {
                    continue;
                }
                let at = rig.driver.put(bytes);
                let answer = rig.driver.alloc((*room).into());
                let chain = [
                    MockDescriptor::readable(at, bytes.len() as u32),
                    MockDescriptor::writable(answer, (*room).into()),
                ];
                // An empty buffer is no descriptor.
                let chain: Vec<_> = chain.into_iter().filter(|part| part.len > 0).collect();
                if chain.is_empty() {
                    continue;
                }
                let head = rig.driver.add(queue, &chain);
                out.insert((queue, head), u32::from(*room));
                rig.driver.notify(queue);
                rig.driver.run();
                while let Some((head, written)) = rig.driver.used(queue) {
                    let room = out.remove(&(queue, head));
                    prop_assert!(room.is_some_and(|room| written <= room), "{}: {room:?}, {written}", rig.name);
                }
            }
            rig.probe();
            prop_assert!(!rig.driver.needs_reset(), "{}", rig.name);
        }
    }

    /// Many buffers to a notification, and rounds that may do next to no work: each ends after a
    /// step, no step is longer than a round may be, and all are taken in the end.
    #[test]
    fn rounds_end_when_their_work_is_done(buffers in buffers()) {
        for mut rig in all_with(|| Deadline::of_work(1)) {
            rig.probe();
            for (queue, bytes, room) in &buffers {
                let queue = queue.index(rig.queues().into()) as u16;
                if rig.driver.room(queue) < 2 || bytes.is_empty() || *room == 0 {
                    continue;
                }
                let at = rig.driver.put(bytes);
                let answer = rig.driver.alloc((*room).into());
                rig.driver.add(queue, &[
                    MockDescriptor::readable(at, bytes.len() as u32),
                    MockDescriptor::writable(answer, (*room).into()),
                ]);
            }
            (0..rig.queues()).for_each(|queue| rig.driver.notify(queue));
            rig.driver.run();
            let work = rig.driver.transport().most_work();
            prop_assert!(work <= Deadline::WORK, "{}: a step of {work} units", rig.name);
            rig.probe();
            prop_assert!(!rig.driver.needs_reset(), "{}", rig.name);
        }
    }
}
