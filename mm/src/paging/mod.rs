// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Absent guest memory: compressed in the monitor's pool or stored in a file, and brought back on
//! access.
//!
//! ```text
//!                      ┌──────────────── guest RAM ────────────────┐
//!   take_out, by MOVE  │ present   absent    present   absent      │   bring_back, by MOVE
//!        ┌─────────────┤                                           │◀───────────┐
//!        ▼             └───────────────────┬───────────────────────┘            │
//!   ┌─────────┐ touched again: move_back ──┘     faults, by userfaultfd ──▶ ┌───────┐
//!   │ outlet  │                                                             │ inlet │
//!   └────┬────┘                                                             └───────┘
//!        │ pack, page by page    ┌──────────────────────┐    read              ▲
//!        └─────────────────────▶ │ page sources: store, │ ─────────────────────┘
//!                                │ file, zero           │
//!                                └──────────────────────┘
//! ```
//!
//! The unit is the block: it leaves as one huge page, and once the guest uses it, it comes back as
//! one, so neither side is fragmented. To a guest that sleeps, its pages come back one by one, as small
//! pages, so that its few accesses cost 4 KiB each; they are copied, and leave again through an outlet
//! of their own. Nothing is lost in transit: until a block is stored, its copy in staging can go
//! back, and until it is back in place, its source keeps it. This module knows no device and no
//! KVM; it may use the rest of `mm`.
//!
//! Front: `mod` the front door · `park` parking and unparking · `stats` counters. Mechanism:
//! `pager_engine` what all threads share · `record` where each block is · `pager` the thread that
//! answers faults · `resolve` bringing back · `evict` taking out and compressing · `discards`
//! discards by others · `empties` blocks without contents · `partial` taking single pages out again · `probation` blocks taken out on
//! trial · `by_page` trials in which the guest gets single pages · `repack` recompression of blocks that stay absent · `relief` eviction at once, for a
//! host that is short. Leaves: `config` settings · `areas` numbering of blocks · `absence` the
//! pages of an absent block · `ages` how long each has been in the store · `states` the states of a block · `staged` blocks in staging, as a source · `staging` address
//! space for blocks in transit · `source` the sources of contents · `page_pool` the compressed
//! pages · `room` how much the host can give · `wakefulness` whether single pages or blocks serve
//! the guest · `hot` the blocks accessed first · `cold` which blocks to try · `costs` the
//! value of eviction.
//!
//! `unsafe` is in `staging` (references to pages on the way) and around UFFDIO_MOVE.

mod absence;
mod ages;
mod areas;
mod by_page;
mod cold;
mod config;
mod costs;
mod discards;
mod empties;
mod evict;
mod hot;
mod page_pool;
mod pager;
mod pager_engine;
mod park;
mod partial;
mod probation;
mod record;
mod relief;
mod repack;
mod resolve;
mod room;
mod source;
mod staged;
mod staging;
mod states;
mod stats;
#[cfg(all(test, not(loom), not(miri)))]
mod tests;
mod wakefulness;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::guest_ram::{AbsentMemory, GuestRam};
use crate::range_set::RangeSet;
use crate::sys::idle_work::IdleWork;
use crate::sys::userfault::Userfault;
use crate::units::{BlockId, Bytes, GuestRange, PAGES_PER_BLOCK};

use absence::{STAGED, SourceId};
use ages::Ages;
use areas::Areas;
use hot::HotSet;
use page_pool::PagePool;
use pager::PagerThread;
use pager_engine::{PagerEngine, lock};
use record::Record;
use room::Room;
use staged::StagedBlocks;
use staging::Outlet;
use states::BlockState;
use stats::{Histogram, PagerCounters};

pub use cold::{ColdTracker, Probation, TrialOutcome};
pub use config::{PagingConfig, PagingError};
pub use costs::EvictionCosts;
pub use page_pool::{PagePoolError, PagePoolStats};
pub use pager_engine::OnLoss;
pub use park::{LeftBlocks, OnProgress, ParkReport, ParkRequest, UnparkReport};
pub use probation::{OnTrial, TrialReport};
pub use relief::{ReliefHand, ReliefReport};
pub use repack::RepackReport;
pub use room::{HostRoom, OnShortage, RoomSource};
pub use source::{Content, FileSource, PageSource, SourceError, StoreSource, ZeroSource};
pub use stats::{FaultLatency, PagingCounters, PagingStats};

/// Blocks that may be in transit to the store at one time.
const SLOTS: usize = 64;
/// Mappings that a run of absent blocks takes.
const MAPPINGS_PER_RUN: usize = 2;

/// The pager of one guest's memory.
///
/// Drop it after the last user of guest memory has stopped: afterwards a thread that waits for an
/// absent page is never served.
pub struct Paging {
    // First: it uses the engine.
    _thread: PagerThread,
    engine: Arc<PagerEngine>,
}

impl Paging {
    /// Starts paging `ram`, of which everything is in place. `on_loss` is called if contents are lost,
    /// by a thread of the pager.
    ///
    /// Until the first block leaves, the only cost is a sleeping thread.
    ///
    /// # Errors
    /// [`PagingError`].
    pub fn start(
        ram: Arc<GuestRam>,
        config: PagingConfig,
        on_loss: OnLoss,
    ) -> Result<Self, PagingError> {
        for region in ram.regions() {
            region.backing().can_page().map_err(PagingError::Backing)?;
        }
        let areas = Areas::of(&ram);
        let uffd = Userfault::open()?;
        let huge = ram.may_be_huge();
        let outlet = Arc::new(Outlet::new(SLOTS, huge, &uffd).map_err(PagingError::Prepare)?);
        let staged = Arc::new(StagedBlocks::new(Arc::clone(&outlet)));
        let parts = Outlet::new(SLOTS, false, &uffd).map_err(PagingError::Prepare)?;
        let pages = areas.blocks() as u64 * PAGES_PER_BLOCK;
        let pool = PagePool::new(pages, config.pool_limit, config.codec, config.second_codec)?;
        for region in ram.regions() {
            let mapping = region.backing().mapping();
            mapping.dont_fork(mapping.range()).map_err(PagingError::Prepare)?;
            // A mapping that was never written cannot be merged again after a split.
            region.backing().populate(mapping.range().first_page())?;
        }
        let store: Arc<dyn PageSource> = Arc::new(StoreSource::new(Arc::clone(pool.store())));
        let blocks = areas.blocks();
        let ages = Ages::new(blocks);
        let engine = Arc::new(PagerEngine {
            record: Mutex::new(Record::new(blocks)),
            sources: [store, Arc::clone(&staged) as Arc<dyn PageSource>]
                .into_iter()
                .chain(config.sources)
                .collect(),
            ram,
            areas,
            huge,
            uffd,
            outlet,
            staged,
            parts,
            pool,
            max_runs: config.max_mappings / MAPPINGS_PER_RUN,
            reads_ahead: AtomicBool::new(true),
            room: Room::new(config.host),
            recent: (0..blocks).map(|_| AtomicBool::new(false)).collect(),
            gate: Mutex::new(()),
            settled: Condvar::new(),
            ages,
            hot: Mutex::new(HotSet::default()),
            pinned: Mutex::new(RangeSet::new()),
            idle: IdleWork::default(),
            counters: PagerCounters::default(),
            latency: Histogram::default(),
            on_loss,
        });
        let absent: Weak<dyn AbsentMemory> =
            Arc::downgrade(&(Arc::clone(&engine) as Arc<dyn AbsentMemory>));
        engine.ram.set_absent_memory(absent);
        let thread = PagerThread::start(Arc::clone(&engine)).map_err(PagingError::Prepare)?;
        Ok(Self { _thread: thread, engine })
    }

    /// Makes all of guest memory absent, with the `nth` of the configuration's sources: it is read
    /// when it is first touched.
    ///
    /// # Errors
    /// [`PagingError::InUse`] if a page is resident.
    ///
    /// # Panics
    /// If the configuration has no such source.
    pub fn attach(&self, nth: u8) -> Result<(), PagingError> {
        let engine = &self.engine;
        let source = SourceId(STAGED.0 + 1 + nth);
        assert!(usize::from(source.0) < engine.sources.len(), "no source {nth} is configured");
        let _gate = lock(&engine.gate);
        for region in engine.ram.regions() {
            let first = region.host().slice(0, crate::units::BLOCK_BYTES.min(region.host().len()));
            // Pages that `start` has touched itself.
            if let Some(first) = first {
                region.backing().discard(&[first])?;
            }
            if region.backing().residency(region.host())?.resident > Bytes(0) {
                return Err(PagingError::InUse);
            }
        }
        let mut record = engine.record();
        for index in 0..engine.areas.blocks() {
            record.set_absent(index, source);
            engine.register(&mut record, index).map_err(PagingError::Prepare)?;
        }
        Ok(())
    }

    /// Moves resident guest memory into the pool, coldest first, whether or not the guest runs.
    /// Returns when done; `cancel` stops it after the current blocks.
    pub fn park(
        &self,
        request: &ParkRequest,
        cancel: &AtomicBool,
        progress: OnProgress<'_>,
    ) -> ParkReport {
        self.engine.park(request, cancel, progress)
    }

    /// Brings all of guest memory back, the hot set first.
    pub fn unpark(
        &self,
        threads: Option<usize>,
        cancel: &AtomicBool,
        progress: OnProgress<'_>,
    ) -> UnparkReport {
        self.engine.unpark(threads, cancel, progress)
    }

    /// A tracker of this memory's cold blocks.
    pub fn cold_tracker(&self, policy: Probation) -> ColdTracker {
        ColdTracker::new(self.engine.areas.blocks(), policy)
    }

    /// Takes at most `wanted` blocks out, uncompressed, to see whether the guest accesses them.
    /// Accessed blocks are moved straight back; of those that came back before, the guest gets single
    /// pages. Blocks with pages of `exclude` stay.
    pub fn begin_trial(
        &self,
        tracker: &mut ColdTracker,
        wanted: usize,
        exclude: &RangeSet,
    ) -> OnTrial {
        self.engine.begin_trial(tracker, wanted, exclude)
    }

    /// Compresses blocks that were not accessed until `stop` says so, which is asked before each.
    pub fn pack_trial(&self, trial: &mut OnTrial, stop: &dyn Fn() -> bool) {
        self.engine.pack_trial(trial, stop);
    }

    /// Compresses the blocks that were not accessed; `tracker` learns which were. After `cancel`,
    /// and once the store rejects a block, the others are put back.
    pub fn end_trial(
        &self,
        tracker: &mut ColdTracker,
        trial: OnTrial,
        cancel: &AtomicBool,
    ) -> TrialReport {
        self.engine.end_trial(tracker, trial, cancel)
    }

    /// Runs `work`, which calls this pager's methods, in CPU time that no other thread needs, until one
    /// waits for a block or a lock that the work has, or `is_urgent`. Returns when it is done.
    pub fn in_idle_time<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
        is_urgent: &dyn Fn() -> bool,
    ) -> T {
        self.engine.idle.run(work, is_urgent)
    }

    /// Recompresses blocks that have been absent for `age` with the second codec, at most `most` of
    /// them and each once.
    pub fn repack(&self, most: usize, age: Duration, cancel: &AtomicBool) -> RepackReport {
        self.engine.repack(most, age, cancel)
    }

    /// Blocks that [`repack`](Self::repack) would find.
    pub fn repackable(&self, age: Duration) -> u64 {
        self.engine.repackable(age).len() as u64
    }

    /// Time until the host may be [short](Self::is_short) although it is not now.
    pub fn has_room_for(&self) -> Duration {
        self.engine.room.known_for()
    }

    /// Evicts a few blocks at once, because the host [is short](Self::is_short); `hand` remembers
    /// where it left off. Blocks with pages of `exclude` stay.
    pub fn relieve(
        &self,
        hand: &mut ReliefHand,
        exclude: &RangeSet,
        cancel: &AtomicBool,
    ) -> ReliefReport {
        self.engine.relieve(hand, exclude, cancel)
    }

    /// Whether the host has too little room for blocks to come back; with `more`, whether room
    /// should still be made.
    pub fn is_short(&self, more: bool) -> bool {
        self.engine.room.is_short(more)
    }

    /// Calls `hook` from now on when a fault finds too little room. It is called by the pager's
    /// thread, which many threads may wait for: it must not wait.
    pub fn set_on_shortage(&self, hook: Option<OnShortage>) {
        self.engine.room.set_on_shortage(hook);
    }

    /// Keeps `pages` in guest memory from now on, and brings them back if they are absent. For
    /// memory that a device or the kernel has pinned.
    ///
    /// # Errors
    /// The host's error if staging memory cannot be mapped; the pages may then be absent.
    pub fn pin(&self, pages: GuestRange) -> io::Result<()> {
        lock(&self.engine.pinned).insert(pages);
        // A thread that was about to take a block out has done so by then.
        drop(lock(&self.engine.gate));
        self.engine.areas.touched(pages).try_for_each(|(index, _)| self.engine.fetch(index))
    }

    /// Lets `pages` leave again.
    pub fn unpin(&self, pages: GuestRange) {
        lock(&self.engine.pinned).remove(pages);
    }

    /// Enables or disables read-ahead, which is enabled by default. Read-ahead takes host memory
    /// early.
    pub fn read_ahead(&self, on: bool) {
        self.engine.reads_ahead.store(on, Ordering::Relaxed);
    }

    /// Waits until no block is being brought back. A thread may have its page before the record of
    /// its block is up to date.
    pub fn settle(&self) {
        let mut record = self.engine.record();
        while record.counts().filling > 0 {
            record = self.engine.settled.wait(record).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Packs the compressed pages closer and gives what that empties back to the host.
    pub fn compact(&self) -> Bytes {
        Bytes(self.engine.pool.compact())
    }

    /// Whether any guest memory is absent.
    pub fn is_anything_absent(&self) -> bool {
        self.engine.absent_bytes() > 0
    }

    /// The absent blocks.
    pub fn absent_blocks(&self) -> Vec<BlockId> {
        let away = |state: &BlockState| match state {
            BlockState::Present | BlockState::Leaving { .. } => false,
            BlockState::Absent(absence) => !absence.is_empty(),
            _ => true,
        };
        let away = self.engine.record().select(away);
        away.into_iter().map(|index| self.engine.areas.block(index)).collect()
    }

    /// What is where.
    pub fn stats(&self) -> PagingStats {
        self.engine.stats()
    }

    /// Recounts everything from the ground up; returns the first mismatch. For tests.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<(), String> {
        self.engine.record().validate()
    }
}
