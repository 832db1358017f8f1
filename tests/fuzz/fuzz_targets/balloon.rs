// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of buffers on the balloon's seven queues, of an active driver: pages that the guest
//! has not given up must keep their contents, and the balloon's record must be consistent.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::balloon::{Balloon, BalloonConfig, Discarded, MemoryReclaim};
use devices::transport::mock::{MockDescriptor, MockDriver};
use devices::virtio::{DeviceLock, GuestMemoryMmap};
use libfuzzer_sys::fuzz_target;
use mm::budget::Budget;
use mm::guest_ram::GuestRamError;
use mm::units::{BlockId, Bytes, GuestRange, Pages, Pfn};
use vm_memory::{Bytes as _, GuestAddress};

/// Four blocks and a ragged one; the first holds the driver.
const RAM_PAGES: u64 = 4 * 512 + 100;
const DRIVER: std::ops::Range<u64> = 0x1000..1 << 21;
/// A page that the guest never names in full: it must never change.
const KEPT: u64 = 3 * 512 + 77;

#[derive(Debug, Arbitrary)]
struct Piece {
    /// Addresses in RAM, unless `wild`.
    addr: u32,
    len: u16,
    writable: bool,
    wild: bool,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Pfns { deflate: bool, pfns: Vec<u16> },
    Run { deflate: bool, start: u16, len: u16 },
    Blocks { op: u8, count: u8, entries: Vec<u16>, whole: bool },
    Answer { id: u8, evacuated: u8, busy: u8, outcomes: Vec<u8> },
    Command(u32),
    Bytes { queue: u8, data: Vec<u8>, room: u16 },
    Pieces { queue: u8, pieces: Vec<Piece> },
    Target(u16),
    Hinting(bool),
    Evacuate(u8),
    Poll,
    Timer,
    Probe(u64),
}

struct Memory(Arc<GuestMemoryMmap>);

impl MemoryReclaim for Memory {
    fn ram(&self) -> Vec<GuestRange> {
        vec![GuestRange::new(Pfn(0), Pages(RAM_PAGES)).expect("RAM")]
    }
    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        let mut end = Pfn(0);
        let mut asked = 0;
        for run in ranges {
            assert!(run.start() >= end && run.end() <= Pfn(RAM_PAGES));
            end = run.end();
            // The driver's block is not changed: a lost ring would only end the run.
            for pfn in run.start().0.max(512)..run.end().0 {
                let page = GuestAddress(pfn << 12);
                self.0.write_slice(&[0; 4096], page).expect("RAM");
            }
            asked += run.bytes().0;
        }
        Ok(Discarded { asked: Bytes(asked), freed: Bytes(asked), ..Discarded::default() })
    }
    fn allow_huge(&mut self, range: GuestRange, _allow: bool) -> Result<(), GuestRamError> {
        assert!(range.end() <= Pfn(RAM_PAGES));
        Ok(())
    }
}

/// Sends `chain` and takes back all used buffers.
fn send(driver: &mut MockDriver, queue: u16, chain: &[MockDescriptor]) {
    if driver.room(queue) < chain.len().max(1) || chain.is_empty() {
        return;
    }
    driver.add(queue, chain);
    driver.notify(queue);
    driver.run();
    (0..7).for_each(|queue| while driver.used(queue).is_some() {});
}

fn send_bytes(driver: &mut MockDriver, queue: u16, data: &[u8], room: u32) {
    let stays = queue == 2 || queue == 6;
    let room = if stays { room % 512 } else { room };
    let data = if stays { &data[..data.len().min(500)] } else { data };
    let mark = driver.alloc(0);
    let readable = MockDescriptor::readable(driver.put(data), data.len() as u32);
    let writable = MockDescriptor::writable(driver.alloc(room.into()), room);
    let chain = [readable, writable];
    send(driver, queue, &chain[..if room == 0 { 1 } else { 2 }]);
    // Statistics and evacuation buffers stay with the device for a while.
    if !stays {
        driver.release(mark);
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (RAM_PAGES as usize) << 12)]);
    let mem = Arc::new(mem.expect("guest memory"));
    let config = BalloonConfig {
        stats_interval: std::time::Duration::from_secs(1),
        free_page_hinting: true,
        free_page_reporting: true,
        ..BalloonConfig::default()
    };
    let memory = Box::new(Memory(Arc::clone(&mem)));
    let mappings = Budget::count("balloon-mappings", 64);
    let balloon = Balloon::new(config, memory, &mappings).expect("a balloon");
    let balloon = Arc::new(DeviceLock::new(balloon));
    let mut driver = MockDriver::new(Arc::clone(&mem), balloon.clone(), DRIVER);
    driver.probe(u64::MAX, 7);
    let kept = GuestAddress(KEPT << 12);
    let mut named = false;
    mem.write_obj(0x5eed_u64, kept).expect("RAM");

    for op in ops.into_iter().take(64) {
        let host = || balloon.lock();
        // After a request that names the kept page itself, it may be discarded.
        match op {
            Op::Pfns { deflate, pfns } => {
                named |= !deflate && pfns.iter().any(|pfn| u64::from(*pfn) == KEPT);
                let raw: Vec<u8> =
                    pfns.iter().take(4096).flat_map(|pfn| u32::from(*pfn).to_le_bytes()).collect();
                send_bytes(&mut driver, u16::from(deflate), &raw, 0);
            }
            Op::Run { deflate, start, len } => {
                let run = u64::from(start)..u64::from(start) + u64::from(len % 1200);
                named |= !deflate && run.contains(&KEPT);
                let raw: Vec<u8> = run.flat_map(|pfn| (pfn as u32).to_le_bytes()).collect();
                send_bytes(&mut driver, u16::from(deflate), &raw, 0);
            }
            Op::Blocks { op, count, entries, whole } => {
                let unit = if whole { 512 } else { 1 };
                let pfns = entries.iter().take(300).map(|entry| u64::from(*entry) * unit);
                let pfns: Vec<u64> = pfns.collect();
                named |= pfns.contains(&(KEPT / 512 * 512));
                let count = if count == 0 { pfns.len() as u32 } else { count.into() };
                let mut raw = [u32::from(op % 4).to_le_bytes(), count.to_le_bytes()].concat();
                raw.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
                send_bytes(&mut driver, 5, &raw, 4);
            }
            Op::Answer { id, evacuated, busy, outcomes } => {
                let mut raw = u64::from(id).to_le_bytes().to_vec();
                raw.extend(u32::from(evacuated).to_le_bytes());
                raw.extend(u32::from(busy).to_le_bytes());
                raw.extend([0; 32]);
                raw.extend(outcomes.into_iter().take(300));
                send_bytes(&mut driver, 6, &raw, 24);
            }
            Op::Command(id) => send_bytes(&mut driver, 3, &id.to_le_bytes(), 0),
            Op::Bytes { queue, data, room } => {
                // Any page number may be in there.
                named = true;
                let data = &data[..data.len().min(2000)];
                send_bytes(&mut driver, (queue % 7).into(), data, room.into());
            }
            Op::Pieces { queue, pieces } => {
                named = true;
                let piece = |piece: &Piece| {
                    let addr = if piece.wild {
                        u64::from(piece.addr) << 24
                    } else {
                        u64::from(piece.addr) % (RAM_PAGES << 12)
                    };
                    let addr = GuestAddress(addr.max(DRIVER.end));
                    match piece.writable {
                        true => MockDescriptor::writable(addr, u32::from(piece.len) << 6),
                        false => MockDescriptor::readable(addr, piece.len.into()),
                    }
                };
                let chain: Vec<MockDescriptor> = pieces.iter().take(30).map(piece).collect();
                send(&mut driver, (queue % 7).into(), &chain);
            }
            Op::Target(pages) => {
                let _ = host().set_target(Pages(pages.into()));
            }
            Op::Hinting(start) => {
                let _ = if start { host().start_hinting(true) } else { host().stop_hinting() };
            }
            Op::Evacuate(block) => {
                let patience = std::time::Duration::from_secs(1);
                let blocks = [BlockId(block.into()), BlockId(2)];
                let _ = host().evacuate(blocks, false, patience, Box::new(|_| {}));
            }
            Op::Poll => {
                host().poll_statistics();
            }
            Op::Timer => host().on_timer(),
            // BLOCKS comes with EVACUATE, or the activation is refused.
            Op::Probe(features) => {
                driver.negotiate(features | 1 << 56 | 1 << 57 | 0x2e);
                (0..7).for_each(|queue| driver.set_up_queue(queue));
                driver.start();
            }
        }
        host().validate().expect("the record agrees with itself");
        assert!(!driver.needs_reset(), "no buffer may fail the device");
        if !named {
            assert_eq!(mem.read_obj::<u64>(kept).expect("RAM"), 0x5eed);
        }
    }
});
