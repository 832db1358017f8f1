// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous runs of any length: isolate the blocks, move everything out, take the frames.
//! CMA areas are ranges kept for that, lent to movable frames meanwhile.

use std::sync::{Mutex, PoisonError};

use super::buddy::Tables;
use super::ids::{BLOCK_FRAMES, BlockIndex, FrameId, FrameRange, Order};
use super::migrate::{BATCH, Mover, Targets};
use super::movable::{MigrateMode, holds_frame};
use super::page::{Kind, Word};
use super::pageblock::MigrateType;
use super::pool::{FramePool, PoolId};
use super::stats::add;
use super::zone::Zone;

/// How often a busy range is tried again.
const TRIES: u32 = 5;

/// Why a run of frames could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContigError {
    /// Zero frames, more than there are, or an alignment that is no power of two.
    #[error("no run of {frames} frames aligned to {align} can exist here")]
    Invalid {
        /// Frames asked for.
        frames: u32,
        /// Alignment asked for, in frames.
        align: u32,
    },
    /// A frame in the range cannot move.
    #[error("{0:?} cannot be moved")]
    Unmovable(FrameId),
    /// A frame in the range stayed busy.
    #[error("{0:?} stays busy")]
    Busy(FrameId),
    /// There is too little free memory to move the range's frames into.
    #[error("no room to move the range's frames to")]
    NoRoom,
    /// No range could be emptied.
    #[error("no run of {0} frames could be made")]
    NotFound(u32),
    /// There is no such CMA area.
    #[error("there is no CMA area {0}")]
    NoArea(usize),
    /// Called inside a migration callback.
    #[error("contiguous memory is not to be had inside a callback")]
    InCallback,
    /// The frames belong to another pool.
    #[error("the frames belong to another pool")]
    Foreign,
}

/// A contiguous run of frames, the holder's alone. Give it back with
/// [`FramePool::free_contig`]; a run that is dropped stays allocated.
#[derive(Debug)]
#[must_use = "a run of frames that is dropped stays allocated"]
pub struct ContigFrames {
    pub(super) range: FrameRange,
    pub(super) pool: PoolId,
    area: Option<usize>,
}

impl ContigFrames {
    /// Which frames.
    #[must_use]
    pub fn range(&self) -> FrameRange {
        self.range
    }

    /// Bytes in the run.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.range.count() as usize * super::FRAME_SIZE
    }
}

/// Frames reserved for contiguous allocation.
pub(super) struct CmaArea {
    range: FrameRange,
    /// One flag for each frame: handed out.
    taken: Mutex<Vec<bool>>,
}

impl CmaArea {
    pub(super) fn new(range: FrameRange) -> Self {
        Self { range, taken: Mutex::new(vec![false; range.count() as usize]) }
    }

    pub(super) fn range(&self) -> FrameRange {
        self.range
    }

    /// Marks the first free run at or after `from`.
    fn reserve(&self, from: FrameId, count: u32, align: u32) -> Option<FrameRange> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = from.max(self.range.start).index().checked_next_multiple_of(align)?;
        loop {
            let range = FrameRange::new(FrameId::new(start), count)?;
            if range.end > self.range.end {
                return None;
            }
            let slots = self.slots(range);
            match taken[slots.clone()].iter().rposition(|&t| t) {
                None => {
                    taken[slots].fill(true);
                    return Some(range);
                }
                Some(last) => {
                    let next = start.checked_add(u32::try_from(last).ok()?)?.checked_add(1)?;
                    start = next.checked_next_multiple_of(align)?;
                }
            }
        }
    }

    fn release(&self, range: FrameRange) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[self.slots(range)].fill(false);
    }

    fn slots(&self, range: FrameRange) -> std::ops::Range<usize> {
        let base = self.range.start.as_usize();
        range.start.as_usize() - base..range.end.as_usize() - base
    }
}

/// Destinations outside the range: ordinary movable allocations.
#[derive(Default)]
struct Elsewhere {
    spare: Vec<FrameId>,
}

impl Targets for Elsewhere {
    fn next(&mut self, pool: &FramePool) -> Option<FrameId> {
        self.spare.pop().or_else(|| pool.zone().take_held(pool.tables(), 0))
    }

    fn give_back(&mut self, frame: FrameId) {
        self.spare.push(frame);
    }
}

/// Blocks marked as isolated, with the types they go back to.
struct Isolation<'p> {
    pool: &'p FramePool,
    blocks: Vec<(BlockIndex, MigrateType)>,
}

impl<'p> Isolation<'p> {
    fn begin(pool: &'p FramePool, range: FrameRange) -> Result<Self, ContigError> {
        let mut isolation = Self { pool, blocks: Vec::new() };
        let mut zone = pool.zone();
        let t = pool.tables();
        if let Some(frame) = first_fixed(t, range) {
            return Err(ContigError::Unmovable(frame));
        }
        for block in range.blocks() {
            isolation.blocks.push((block, t.blocks.type_of(block)));
            zone.buddy.retype_block(t, block, MigrateType::Isolate);
        }
        Ok(isolation)
    }
}

impl Drop for Isolation<'_> {
    fn drop(&mut self) {
        let mut zone = self.pool.zone();
        let t = self.pool.tables();
        for &(block, of) in &self.blocks {
            zone.buddy.retype_block(t, block, of);
        }
        for &(block, _) in &self.blocks {
            zone.buddy.remerge_block(t, block);
        }
    }
}

/// The first allocated frame of a range that is not movable.
fn first_fixed(t: Tables<'_>, range: FrameRange) -> Option<FrameId> {
    // A unit may start before the range.
    let mut at = covering_head(t, range.start);
    while at < range.end {
        let word = t.frames.meta(at).load();
        match word.kind() {
            Kind::Buddy => at = at.offset(word.order().frames()),
            // No reference at all: about to be freed by whoever dropped the last one.
            Kind::Used if !word.is_movable() && !word.is_isolated() && word.refs() > 0 => {
                return Some(at);
            }
            _ => at = at.offset(1),
        }
    }
    None
}

/// The head of the free or allocated unit that `frame` lies in, or `frame` itself.
fn covering_head(t: Tables<'_>, frame: FrameId) -> FrameId {
    for order in Order::all() {
        let head = frame.align_down(order);
        let word = t.frames.meta(head).load();
        if matches!(word.kind(), Kind::Buddy | Kind::Used)
            && frame.index() - head.index() < word.order().frames()
        {
            return head;
        }
    }
    frame
}

impl FramePool {
    /// Allocates a run of `count` frames at a multiple of `align` frames, outside the CMA areas.
    ///
    /// # Errors
    /// [`ContigError::NotFound`] if no range could be emptied, and the errors of the request.
    pub fn alloc_contig(&self, count: u32, align: u32) -> Result<ContigFrames, ContigError> {
        self.check_contig(count, align)?;
        let mut start = 0u32;
        while let Some(range) = FrameRange::new(FrameId::new(start), count)
            && range.end.index() <= self.frame_count()
        {
            let lent = range.blocks().filter(|&b| {
                matches!(self.blocks.type_of(b), MigrateType::Cma | MigrateType::Isolate)
            });
            let past = match lent.last() {
                Some(block) => block.end().index(),
                None => match self.take_range(range) {
                    Ok(()) => return Ok(self.contig(range, None)),
                    Err(ContigError::Unmovable(f) | ContigError::Busy(f)) => f.index() + 1,
                    Err(ContigError::NoRoom) => return Err(ContigError::NoRoom),
                    Err(_) => start + 1,
                },
            };
            let Some(next) = past.max(start + 1).checked_next_multiple_of(align) else { break };
            start = next;
        }
        Err(ContigError::NotFound(count))
    }

    /// Allocates a run of `count` frames at a multiple of `align` frames from a CMA area.
    ///
    /// # Errors
    /// [`ContigError::NotFound`] if no range could be emptied, and the errors of the request.
    pub fn alloc_cma(
        &self,
        area: usize,
        count: u32,
        align: u32,
    ) -> Result<ContigFrames, ContigError> {
        self.check_contig(count, align)?;
        let cma = self.cma.get(area).ok_or(ContigError::NoArea(area))?;
        let mut from = cma.range().start;
        let mut last = ContigError::NotFound(count);
        while let Some(range) = cma.reserve(from, count, align) {
            let Err(error) = self.take_range(range) else {
                return Ok(self.contig(range, Some(area)));
            };
            cma.release(range);
            last = error;
            from = match error {
                // No range that holds this frame can be had.
                ContigError::Busy(frame) | ContigError::Unmovable(frame) => {
                    frame.max(range.start).offset(1)
                }
                _ => break,
            };
        }
        Err(last)
    }

    /// Gives a run back.
    ///
    /// # Errors
    /// [`ContigError::Foreign`], with the run.
    pub fn free_contig(&self, run: ContigFrames) -> Result<(), (ContigError, ContigFrames)> {
        if run.pool != self.id() {
            return Err((ContigError::Foreign, run));
        }
        self.zone().free_range(self.tables(), run.range);
        if let Some(cma) = run.area.and_then(|area| self.cma.get(area)) {
            cma.release(run.range);
        }
        Ok(())
    }

    fn contig(&self, range: FrameRange, area: Option<usize>) -> ContigFrames {
        ContigFrames { range, pool: self.id(), area }
    }

    fn check_contig(&self, frames: u32, align: u32) -> Result<(), ContigError> {
        if frames == 0 || frames > self.frame_count() || !align.is_power_of_two() {
            return Err(ContigError::Invalid { frames, align });
        }
        if holds_frame() { Err(ContigError::InCallback) } else { Ok(()) }
    }

    /// Empties a range and takes it. On failure everything is as before, but for frames moved.
    fn take_range(&self, range: FrameRange) -> Result<(), ContigError> {
        // One at a time: two ranges may share a block, which can only be isolated once.
        let _turn = self.contig_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.take_range_locked(range);
        let counter = match result {
            Ok(()) => &self.events.contig_success,
            Err(_) => &self.events.contig_fail,
        };
        add(counter, 1);
        result
    }

    fn take_range_locked(&self, range: FrameRange) -> Result<(), ContigError> {
        // Before the first look, so that cached frames show as free.
        self.drain_caches();
        let _isolation = Isolation::begin(self, range)?;
        let mut busy = ContigError::Busy(range.start);
        for _ in 0..TRIES {
            // From here on no frame of these blocks can enter a cache or leave a free list.
            self.drain_caches();
            self.empty_range(range)?;
            match self.take_free_range(range) {
                Ok(()) => return Ok(()),
                Err(frame) => busy = ContigError::Busy(frame),
            }
            std::thread::yield_now();
        }
        Err(busy)
    }

    /// Moves every movable frame out of an isolated range, as far as that goes.
    fn empty_range(&self, range: FrameRange) -> Result<(), ContigError> {
        let mut mover = Mover::new();
        let mut targets = Elsewhere::default();
        let mut out_of_room = false;
        let mut frames = range.frames().peekable();
        while frames.peek().is_some() && !out_of_room {
            for frame in frames.by_ref() {
                if self.meta(frame).load().is_movable() {
                    mover.isolate(self, frame, MigrateMode::Sync);
                }
                if mover.sources.len() >= BATCH {
                    break;
                }
            }
            if !mover.sources.is_empty() {
                out_of_room = mover.run(self, MigrateMode::Sync, &mut targets).out_of_targets;
            }
        }
        mover.finish(self);
        let mut zone = self.zone();
        for frame in targets.spare {
            zone.release_held(self.tables(), frame);
        }
        if out_of_room { Err(ContigError::NoRoom) } else { Ok(()) }
    }

    /// Takes a range off the free lists if all of it is free; else names a frame that is not.
    fn take_free_range(&self, range: FrameRange) -> Result<(), FrameId> {
        let t = self.tables();
        let mut zone = self.zone();
        let first = covering_head(t, range.start);
        let mut at = first;
        while at < range.end {
            let word = t.frames.meta(at).load();
            if word.kind() != Kind::Buddy {
                return Err(at);
            }
            at = at.offset(word.order().frames());
        }
        let last = at;
        let mut at = first;
        while at < range.end {
            let order = zone.buddy.remove(t, at);
            at = at.offset(order.frames());
        }
        for frame in range.frames() {
            t.frames.meta(frame).store(Word::used(Order::ZERO));
        }
        zone.used += i64::from(range.count());
        free_rest(&mut zone, t, FrameRange { start: first, end: range.start });
        free_rest(&mut zone, t, FrameRange { start: range.end, end: last });
        Ok(())
    }
}

/// Puts back what a unit had outside the range taken.
fn free_rest(zone: &mut Zone, t: Tables<'_>, rest: FrameRange) {
    if rest.count() > 0 {
        zone.buddy.free_range(t, rest);
    }
}

const _: () = assert!(BLOCK_FRAMES.is_power_of_two());
