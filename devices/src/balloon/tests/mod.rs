// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon from its driver's side: registers, rings, and guest memory whose discarded pages
//! really lose their contents.
//!
//! - `pages.rs`: inflate and deflate, and when pages go back to the host
//! - `blocks.rs`: the block queue
//! - `evacuation.rs`: evacuation requests
//! - `free_pages.rs`: reporting, hinting, poison
//! - `lifecycle.rs`: negotiation, reset, targets, statistics
//! - `hostile.rs`: misbehaving guests
//! - `deadlines.rs`: no round does more than its deadline allows
//! - `mappings.rs`: blocks with holes stay within the budget of mappings
//! - `hugetlb.rs`: memory that the host may be unable to bring back
//! - `properties.rs`: any sequence of all of it

mod blocks;
mod deadlines;
mod evacuation;
mod free_pages;
mod hostile;
mod hugetlb;
mod lifecycle;
mod mappings;
mod pages;
mod properties;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mm::backing::BackingError;
use mm::budget::Budget;
use mm::guest_ram::GuestRamError;
use mm::units::{Bytes, GuestRange, PAGE_SIZE, PAGES_PER_BLOCK, Pages, Pfn, usize_from};
use vm_memory::{Bytes as _, GuestAddress};

use super::protocol::{BlocksStatus, feature};
use super::{Balloon, BalloonConfig, Discarded, MemoryReclaim};
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{Deadline, DeviceLock, GuestMemoryMmap, Locked};

/// RAM: eight blocks from 0, a hole, then a block and a half.
const RAM: [(u64, u64); 2] = [(0, 8 * PAGES_PER_BLOCK), (16 * PAGES_PER_BLOCK, 768)];
/// The last block below the hole holds the driver's rings and buffers.
const DRIVER: std::ops::Range<u64> = 7 << 21..8 << 21;

/// Everything that a device can offer.
const EVERYTHING: u64 = u64::MAX;
/// Queues when every feature is agreed on.
const ALL_QUEUES: u16 = 7;

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}

/// Calls of the balloon on the memory.
#[derive(Debug, Default)]
struct Host {
    discards: Vec<GuestRange>,
    calls: usize,
    huge: Vec<(GuestRange, bool)>,
    refuse: bool,
    /// Its memory consists of huge pages of this many pages from a pool.
    pooled: Option<u64>,
    pool_empty: bool,
    restored: Vec<GuestRange>,
}

/// Memory that is zeroed when it is given back.
struct Memory {
    mem: Arc<GuestMemoryMmap>,
    host: Arc<Mutex<Host>>,
}

impl MemoryReclaim for Memory {
    fn ram(&self) -> Vec<GuestRange> {
        RAM.iter().map(|(start, pages)| range(*start, *pages)).collect()
    }

    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        let mut host = self.host.lock().unwrap();
        host.calls += 1;
        for pair in ranges.windows(2) {
            assert!(pair[0].end() < pair[1].start(), "runs ascend and are merged: {pair:?}");
        }
        let outside = ranges.iter().find(|run| !self.ram().iter().any(|ram| ram.covers(run)));
        if let Some(outside) = outside {
            panic!("{outside} is not RAM");
        }
        if host.refuse {
            return Err(GuestRamError::NotRam(ranges[0]));
        }
        let mut asked = 0;
        for run in ranges {
            let zeroes = vec![0; usize_from(run.bytes().0)];
            self.mem.write_slice(&zeroes, run.address()).unwrap();
            asked += run.bytes().0;
        }
        host.discards.extend_from_slice(ranges);
        Ok(Discarded { asked: Bytes(asked), freed: Bytes(asked), ..Discarded::default() })
    }

    fn allow_huge(&mut self, range: GuestRange, allow: bool) -> Result<(), GuestRamError> {
        assert!(range.start().is_block_aligned() && range.end().is_block_aligned());
        assert!(self.ram().iter().any(|ram| ram.covers(&range)));
        self.host.lock().unwrap().huge.push((range, allow));
        Ok(())
    }

    fn unit(&self) -> Pages {
        Pages(self.host.lock().unwrap().pooled.unwrap_or(PAGES_PER_BLOCK))
    }

    fn refills(&self) -> bool {
        self.host.lock().unwrap().pooled.is_none()
    }

    fn restore(&mut self, range: GuestRange) -> Result<Bytes, GuestRamError> {
        let mut host = self.host.lock().unwrap();
        if host.pool_empty {
            let source = rustix::io::Errno::NOSPC.into();
            let range = mm::units::HostRange::new(0, 4096).unwrap();
            let error = BackingError::Advise { what: "allocate", range, source };
            return Err(error.into());
        }
        host.restored.push(range);
        Ok(range.bytes())
    }
}

/// A balloon, its driver, and the memory between them.
struct Rig {
    driver: MockDriver,
    balloon: Arc<DeviceLock<Balloon>>,
    mem: Arc<GuestMemoryMmap>,
    host: Arc<Mutex<Host>>,
}

fn config() -> BalloonConfig {
    BalloonConfig {
        stats_interval: Duration::from_secs(3600),
        free_page_hinting: true,
        free_page_reporting: true,
        ..BalloonConfig::default()
    }
}

/// Mappings enough for any test.
fn many() -> Arc<Budget> {
    Budget::count("test-mappings", 1 << 15)
}

impl Rig {
    /// Everything configured, nothing negotiated.
    fn new(config: BalloonConfig) -> Self {
        Self::over(config, Host::default(), &many(), Deadline::new)
    }

    /// With deadlines of the test's.
    fn new_with(config: BalloonConfig, deadline: fn() -> Deadline) -> Self {
        Self::over(config, Host::default(), &many(), deadline)
    }

    /// Over huge pages of `unit` pages each, from a pool.
    fn new_pooled(config: BalloonConfig, unit: u64) -> Self {
        Self::over(config, Host { pooled: Some(unit), ..Host::default() }, &many(), Deadline::new)
    }

    fn over(
        config: BalloonConfig,
        host: Host,
        mappings: &Arc<Budget>,
        deadline: fn() -> Deadline,
    ) -> Self {
        let ram = RAM.map(|(start, pages)| {
            (GuestAddress(start * PAGE_SIZE), usize::try_from(pages * PAGE_SIZE).unwrap())
        });
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&ram).unwrap());
        let host = Arc::new(Mutex::new(host));
        let memory = Memory { mem: Arc::clone(&mem), host: Arc::clone(&host) };
        let balloon = Balloon::new(config, Box::new(memory), mappings).unwrap();
        let balloon = Arc::new(DeviceLock::new(balloon));
        let driver = MockDriver::with_deadline(Arc::clone(&mem), balloon.clone(), DRIVER, deadline);
        Self { driver, balloon, mem, host }
    }

    /// Everything agreed on.
    fn probed() -> Self {
        let mut rig = Self::new(config());
        rig.driver.probe(EVERYTHING, ALL_QUEUES);
        rig
    }

    /// Only `features` agreed on.
    fn with(features: u64) -> Self {
        let mut rig = Self::new(config());
        let queues = super::roles::of(features).count();
        rig.driver.probe(features, u16::try_from(queues).unwrap());
        rig
    }

    fn balloon(&self) -> Locked<'_, Balloon> {
        self.balloon.lock()
    }

    /// The number of the queue that has `role` with what was agreed on.
    fn queue(&self, role: super::roles::BalloonQueue) -> u16 {
        let mut roles = super::roles::of(self.driver.features());
        u16::try_from(roles.position(|other| other == role).unwrap()).unwrap()
    }

    fn send_pfns(&mut self, queue: u16, pfns: &[u32]) -> u32 {
        let raw: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.send_bytes(queue, &raw)
    }

    fn send_bytes(&mut self, queue: u16, raw: &[u8]) -> u32 {
        let mark = self.driver.alloc(0);
        let at = self.driver.put(raw);
        let written = self.driver.send(queue, &[MockDescriptor::readable(at, raw.len() as u32)]);
        self.driver.release(mark);
        written
    }

    fn inflate(&mut self, pfns: impl IntoIterator<Item = u32>) {
        self.send_pfns(0, &pfns.into_iter().collect::<Vec<_>>());
    }

    fn deflate(&mut self, pfns: impl IntoIterator<Item = u32>) {
        self.send_pfns(1, &pfns.into_iter().collect::<Vec<_>>());
    }

    /// Sends a request on the block queue; `None` if the device wrote no status.
    fn block_request(&mut self, op: u32, count: u32, entries: &[u64]) -> Option<u32> {
        let queue = self.queue(super::roles::BalloonQueue::Blocks);
        let mark = self.driver.alloc(0);
        let mut raw = [op.to_le_bytes(), count.to_le_bytes()].concat();
        raw.extend(entries.iter().flat_map(|pfn| pfn.to_le_bytes()));
        let request = self.driver.put(&raw);
        let status = self.driver.put(&[0xff; 4]);
        let written = self.driver.send(
            queue,
            &[
                MockDescriptor::readable(request, raw.len() as u32),
                MockDescriptor::writable(status, 4),
            ],
        );
        let value = self.mem.read_obj(status).unwrap();
        self.driver.release(mark);
        (written == 4).then_some(value)
    }

    fn inflate_blocks(&mut self, blocks: &[u64]) -> u32 {
        let pfns: Vec<u64> = blocks.iter().map(|block| block * PAGES_PER_BLOCK).collect();
        self.block_request(1, pfns.len() as u32, &pfns).unwrap()
    }

    fn deflate_blocks(&mut self, blocks: &[u64]) -> u32 {
        let pfns: Vec<u64> = blocks.iter().map(|block| block * PAGES_PER_BLOCK).collect();
        self.block_request(2, pfns.len() as u32, &pfns).unwrap()
    }

    /// Runs all pending work.
    fn settle(&self) {
        let mut balloon = self.balloon();
        balloon.core.pool.hurry();
        while balloon.core.pool.waiting() {
            balloon.on_timer();
        }
    }

    /// Runs given back since the last call, as (first page, pages).
    fn discards(&self) -> Vec<(u64, u64)> {
        let mut host = self.host.lock().unwrap();
        host.discards.drain(..).map(|run| (run.start().0, run.pages().0)).collect()
    }

    /// Blocks where huge pages were forbidden or allowed since the last call.
    fn huge(&self) -> Vec<(u64, u64, bool)> {
        let mut host = self.host.lock().unwrap();
        let pages = |run: &GuestRange| (run.start().block().0, run.pages().0 / PAGES_PER_BLOCK);
        host.huge.drain(..).map(|(run, allow)| (pages(&run).0, pages(&run).1, allow)).collect()
    }

    fn write_page(&self, pfn: u64, value: u64) {
        self.mem.write_obj(value, GuestAddress(pfn * PAGE_SIZE)).unwrap();
    }

    fn page(&self, pfn: u64) -> u64 {
        self.mem.read_obj(GuestAddress(pfn * PAGE_SIZE)).unwrap()
    }

    fn validate(&self) {
        assert_eq!(self.balloon().validate(), Ok(()));
    }
}

const OK: u32 = BlocksStatus::Ok as u32;
const BAD_REQUEST: u32 = BlocksStatus::BadRequest as u32;
const BAD_BLOCK: u32 = BlocksStatus::BadBlock as u32;
const BAD_STATE: u32 = BlocksStatus::BadState as u32;
