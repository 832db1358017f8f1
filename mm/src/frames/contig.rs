// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contiguous runs of any length: finds ranges that can be evacuated, outside the CMA areas or in
//! one of them.

use std::sync::{Mutex, PoisonError};

use super::callbacks::holds_frame;
use super::cma::CmaArea;
use super::events::add;
use super::ids::{FrameId, FrameRange};
use super::isolate::{self, Refused};
use super::pageblock::MigrateType;
use super::pool_core::PoolCore;
use super::token::ContigFrames;

/// Why a run of frames could not be allocated or freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContigError {
    /// Zero frames, more than the pool has, or an alignment that is not a power of two.
    #[error(
        "invalid run: {frames} frames aligned to {align} (want 1 up to the pool's size, and a power of two)"
    )]
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
    #[error("{0:?} is still busy after all retries")]
    Busy(FrameId),
    /// There is too little free memory to move the range's frames into.
    #[error("too little free memory to move the range's frames to")]
    NoRoom,
    /// No range could be evacuated.
    #[error("cannot free any run of {0} contiguous frames")]
    NotFound(u32),
    /// There is no such CMA area.
    #[error("unknown CMA area {0}")]
    NoArea(usize),
    /// Called inside a migration callback.
    #[error("cannot allocate contiguous memory from a migration callback")]
    InCallback,
    /// The frames belong to another pool.
    #[error("the frames belong to another pool")]
    Foreign,
}

impl From<Refused> for ContigError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unmovable(frame) => Self::Unmovable(frame),
            Refused::Busy(frame) => Self::Busy(frame),
            Refused::NoRoom => Self::NoRoom,
        }
    }
}

/// The pool's allocator of contiguous runs.
pub(super) struct Contig {
    areas: Vec<CmaArea>,
    /// Held while a range is taken; outermost of the pool's locks.
    turn: Mutex<()>,
}

impl Contig {
    /// The pool has checked `areas`.
    pub(super) fn new(areas: &[FrameRange]) -> Self {
        let areas = areas.iter().map(|&range| CmaArea::new(range)).collect();
        Self { areas, turn: Mutex::new(()) }
    }

    /// A run outside the CMA areas.
    pub(super) fn alloc(
        &self,
        core: &PoolCore,
        count: u32,
        align: u32,
    ) -> Result<ContigFrames, ContigError> {
        check(core, count, align)?;
        let mut start = 0u32;
        while let Some(range) = FrameRange::new(FrameId::new(start), count)
            && range.end.index() <= core.frame_count()
        {
            let lent = range.blocks().filter(|&b| {
                matches!(core.blocks().type_of(b), MigrateType::Cma | MigrateType::Isolate)
            });
            let past = match lent.last() {
                Some(block) => block.end().index(),
                None => match self.take(core, range) {
                    Ok(()) => return Ok(ContigFrames::new(range, core.space().id(), None)),
                    Err(Refused::Unmovable(f) | Refused::Busy(f)) => f.index() + 1,
                    Err(Refused::NoRoom) => return Err(ContigError::NoRoom),
                },
            };
            let Some(next) = past.max(start + 1).checked_next_multiple_of(align) else { break };
            start = next;
        }
        Err(ContigError::NotFound(count))
    }

    /// A run from CMA area `area`.
    pub(super) fn alloc_cma(
        &self,
        core: &PoolCore,
        area: usize,
        count: u32,
        align: u32,
    ) -> Result<ContigFrames, ContigError> {
        check(core, count, align)?;
        let cma = self.areas.get(area).ok_or(ContigError::NoArea(area))?;
        let mut from = cma.range().start;
        let mut last = ContigError::NotFound(count);
        while let Some(range) = cma.reserve(from, count, align) {
            let Err(refused) = self.take(core, range) else {
                return Ok(ContigFrames::new(range, core.space().id(), Some(area)));
            };
            cma.release(range);
            from = match refused {
                // Every range that holds this frame would fail.
                Refused::Busy(frame) | Refused::Unmovable(frame) => {
                    frame.max(range.start).offset(1)
                }
                Refused::NoRoom => return Err(ContigError::NoRoom),
            };
            last = refused.into();
        }
        Err(last)
    }

    /// Gives a run back.
    pub(super) fn free(
        &self,
        core: &PoolCore,
        run: ContigFrames,
    ) -> Result<(), (ContigError, ContigFrames)> {
        if run.pool() != core.space().id() {
            return Err((ContigError::Foreign, run));
        }
        core.zone().free_range(core.tables(), run.range());
        if let Some(cma) = run.area().and_then(|area| self.areas.get(area)) {
            cma.release(run.range());
        }
        Ok(())
    }

    /// Takes one range, one caller at a time.
    fn take(&self, core: &PoolCore, range: FrameRange) -> Result<(), Refused> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = isolate::take_range(core, range);
        let counter = match result {
            Ok(()) => &core.events().contig_success,
            Err(_) => &core.events().contig_fail,
        };
        add(counter, 1);
        result
    }
}

fn check(core: &PoolCore, frames: u32, align: u32) -> Result<(), ContigError> {
    if frames == 0 || frames > core.frame_count() || !align.is_power_of_two() {
        return Err(ContigError::Invalid { frames, align });
    }
    if holds_frame() { Err(ContigError::InCallback) } else { Ok(()) }
}
