// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What inflation costs the monitor: the device alone, and with guest memory that goes back to the
//! host. Bytes are guest memory given up.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use devices::balloon::{Balloon, BalloonConfig, Discarded, MemoryReclaim};
use devices::transport::mock::{MockDescriptor, MockDriver};
use devices::virtio::DeviceLock;
use mm::backing::BackingKind;
use mm::budget::Budget;
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::layout::MemoryLayout;
use mm::units::{BLOCK_SIZE, Bytes, GuestRange, PAGE_SIZE, PAGES_PER_BLOCK, Pages, Pfn};

/// Guest memory; the first block is the driver's.
const RAM: u64 = 256 << 20;
/// Page numbers in one buffer, as Linux sends them.
const BATCH: u64 = 256;
/// Blocks that are inflated and deflated again.
const BLOCKS: u64 = 64;

/// Memory whose discard does nothing.
struct Nowhere;

impl MemoryReclaim for Nowhere {
    fn ram(&self) -> Vec<GuestRange> {
        vec![GuestRange::new(Pfn(0), Bytes(RAM).as_pages()).expect("RAM")]
    }
    fn discard(&mut self, _ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        Ok(Discarded::default())
    }
    fn allow_huge(&mut self, _range: GuestRange, _allow: bool) -> Result<(), GuestRamError> {
        Ok(())
    }
}

struct Rig {
    driver: MockDriver,
    ram: Arc<GuestRam>,
}

impl Rig {
    fn new(real: bool) -> Self {
        let layout = MemoryLayout::new(Bytes(RAM), Bytes(0)).expect("a layout");
        let ram = Arc::new(GuestRam::new(layout, BackingKind::Thp).expect("guest memory"));
        let reclaim: Box<dyn MemoryReclaim> =
            if real { Box::new(Arc::clone(&ram)) } else { Box::new(Nowhere) };
        let balloon = Balloon::new(
            BalloonConfig::default(),
            reclaim,
            &Budget::count("balloon-mappings", 1 << 15),
        )
        .expect("a balloon");
        let balloon = Arc::new(DeviceLock::new(balloon));
        let mem = Arc::clone(ram.memory());
        let mut driver = MockDriver::new(mem, balloon, PAGE_SIZE..BLOCK_SIZE);
        // Inflate, deflate, blocks, evacuation.
        driver.probe(u64::MAX, 4);
        Self { driver, ram }
    }

    /// Sends page numbers on queue 0 (inflate) or 1 (deflate).
    fn pages(&mut self, queue: u16, pfns: impl Iterator<Item = u64>) {
        let mark = self.driver.alloc(0);
        let raw: Vec<u8> = pfns.flat_map(|pfn| (pfn as u32).to_le_bytes()).collect();
        let at = self.driver.put(&raw);
        self.driver.send(queue, &[MockDescriptor::readable(at, raw.len() as u32)]);
        self.driver.release(mark);
    }

    /// Sends a request for all blocks: 1 inflates, 2 deflates.
    fn blocks(&mut self, op: u32) {
        let mark = self.driver.alloc(0);
        let mut raw = [op.to_le_bytes(), (BLOCKS as u32).to_le_bytes()].concat();
        raw.extend((1..=BLOCKS).flat_map(|block| (block * PAGES_PER_BLOCK).to_le_bytes()));
        let request = MockDescriptor::readable(self.driver.put(&raw), raw.len() as u32);
        let status = MockDescriptor::writable(self.driver.alloc(4), 4);
        assert_eq!(self.driver.send(2, &[request, status]), 4);
        self.driver.release(mark);
    }

    fn populate(&self) {
        let range = GuestRange::new(Pfn(PAGES_PER_BLOCK), Pages(BLOCKS * PAGES_PER_BLOCK));
        self.ram.populate(range.expect("RAM")).expect("host memory");
    }
}

/// All pages of the blocks, in buffers as Linux makes them.
fn batches() -> impl Iterator<Item = std::ops::Range<u64>> {
    let all = PAGES_PER_BLOCK..(BLOCKS + 1) * PAGES_PER_BLOCK;
    all.step_by(BATCH as usize).map(|first| first..first + BATCH)
}

fn device(c: &mut Criterion) {
    let mut group = c.benchmark_group("balloon-device");
    group.throughput(Throughput::Bytes(BATCH * PAGE_SIZE));
    let mut rig = Rig::new(false);
    let first = PAGES_PER_BLOCK;
    group.bench_function("inflate-and-deflate-256-neighbours", |b| {
        b.iter(|| (0..2).for_each(|queue| rig.pages(queue, first..first + BATCH)));
    });
    group.bench_function("inflate-and-deflate-256-scattered", |b| {
        // Every other page, and not in order.
        let pfns = || (0..BATCH).map(|nth| first + (nth * 77 % BATCH) * 2);
        b.iter(|| (0..2).for_each(|queue| rig.pages(queue, pfns())));
    });
    group.throughput(Throughput::Bytes(BLOCKS * BLOCK_SIZE));
    group.bench_function("inflate-and-deflate-64-blocks", |b| {
        b.iter(|| (1..=2).for_each(|op| rig.blocks(op)));
    });
    group.finish();
}

fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("balloon-memory");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(BLOCKS * BLOCK_SIZE));
    let rig = std::cell::RefCell::new(Rig::new(true));
    group.bench_function("inflate-by-page-numbers", |b| {
        let prepare = || {
            batches().for_each(|batch| rig.borrow_mut().pages(1, batch));
            rig.borrow().populate();
        };
        let inflate = |()| batches().for_each(|batch| rig.borrow_mut().pages(0, batch));
        b.iter_batched(prepare, inflate, BatchSize::PerIteration);
    });
    batches().for_each(|batch| rig.borrow_mut().pages(1, batch));
    let mut inflated = false;
    group.bench_function("inflate-by-blocks", |b| {
        let mut prepare = || {
            if std::mem::replace(&mut inflated, true) {
                rig.borrow_mut().blocks(2);
            }
            rig.borrow().populate();
        };
        b.iter_batched(&mut prepare, |()| rig.borrow_mut().blocks(1), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, device, memory);
criterion_main!(benches);
