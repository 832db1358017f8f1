// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Evacuating a range of frames: mark its blocks as isolated, move everything out, take the frames.

use super::buddy::Tables;
use super::ids::{FrameBlock, FrameId, FrameRange};
use super::migrate::{BATCH, Mover, Targets};
use super::movable::MigrateMode;
use super::page::FrameKind;
use super::pageblock::MigrateType;
use super::pool_core::PoolCore;

/// How often a busy range is tried again.
const TRIES: u32 = 5;

/// Why a range was not taken.
pub(super) enum Refused {
    /// The frame cannot be moved.
    Unmovable(FrameId),
    /// The frame stayed in use.
    Busy(FrameId),
    /// Too little free memory to move the range's frames into.
    NoRoom,
}

/// Evacuates a range and takes it. On failure nothing has changed, except that frames were moved.
/// The caller makes sure that only one range is taken at a time: two may share a block, which can
/// only be isolated once.
pub(super) fn take_range(core: &PoolCore, range: FrameRange) -> Result<(), Refused> {
    // Before the first scan, so that cached frames appear as free.
    core.drain_caches();
    let _isolation = Isolation::begin(core, range)?;
    let mut busy = Refused::Busy(range.start);
    for _ in 0..TRIES {
        // From here on no frame of these blocks can enter a cache or leave a free list.
        core.drain_caches();
        empty(core, range)?;
        match core.zone().take_range(core.tables(), range) {
            Ok(()) => return Ok(()),
            Err(frame) => busy = Refused::Busy(frame),
        }
        std::thread::yield_now();
    }
    Err(busy)
}

/// Blocks marked as isolated, with the types they go back to.
struct Isolation<'p> {
    core: &'p PoolCore,
    blocks: Vec<(FrameBlock, MigrateType)>,
}

impl<'p> Isolation<'p> {
    fn begin(core: &'p PoolCore, range: FrameRange) -> Result<Self, Refused> {
        let mut isolation = Self { core, blocks: Vec::new() };
        let mut zone = core.zone();
        let t = core.tables();
        if let Some(frame) = first_fixed(t, range) {
            return Err(Refused::Unmovable(frame));
        }
        for block in range.blocks() {
            isolation.blocks.push((block, t.blocks.type_of(block)));
            zone.retype_block(t, block, MigrateType::Isolate);
        }
        Ok(isolation)
    }
}

impl Drop for Isolation<'_> {
    fn drop(&mut self) {
        let mut zone = self.core.zone();
        let t = self.core.tables();
        for &(block, of) in &self.blocks {
            zone.retype_block(t, block, of);
        }
        for &(block, _) in &self.blocks {
            zone.remerge_block(t, block);
        }
    }
}

/// The first allocated frame of a range that is not movable.
fn first_fixed(t: Tables<'_>, range: FrameRange) -> Option<FrameId> {
    // A unit may start before the range.
    let mut at = t.covering_head(range.start);
    while at < range.end {
        let word = t.frames.meta(at).load();
        match word.kind() {
            FrameKind::Buddy => at = at.offset(word.order().frames()),
            // No reference: about to be freed by the thread that dropped the last one.
            FrameKind::Used if !word.is_movable() && !word.is_isolated() && word.refs() > 0 => {
                return Some(at);
            }
            _ => at = at.offset(1),
        }
    }
    None
}

/// Destinations outside the range: ordinary movable allocations.
#[derive(Default)]
struct Elsewhere {
    spare: Vec<FrameId>,
}

impl Targets for Elsewhere {
    fn next(&mut self, core: &PoolCore) -> Option<FrameId> {
        self.spare.pop().or_else(|| core.zone().take_held(core.tables(), 0))
    }

    fn give_back(&mut self, frame: FrameId) {
        self.spare.push(frame);
    }
}

/// Moves every movable frame out of an isolated range, as far as possible.
fn empty(core: &PoolCore, range: FrameRange) -> Result<(), Refused> {
    let mut mover = Mover::new();
    let mut targets = Elsewhere::default();
    let mut out_of_room = false;
    let mut frames = range.frames().peekable();
    while frames.peek().is_some() && !out_of_room {
        for frame in frames.by_ref() {
            if core.meta(frame).load().is_movable() {
                mover.isolate(core, frame, MigrateMode::Sync);
            }
            if mover.isolated() >= BATCH {
                break;
            }
        }
        if mover.isolated() > 0 {
            out_of_room = mover.run(core, MigrateMode::Sync, &mut targets).out_of_targets;
        }
    }
    mover.finish(core);
    let mut zone = core.zone();
    for frame in targets.spare {
        zone.release_held(core.tables(), frame);
    }
    if out_of_room { Err(Refused::NoRoom) } else { Ok(()) }
}
