// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Allocation and release of zspages.

use super::class::{MAX_CHAIN, SizeClass};
use super::error::ZsError;
use super::lists::ClassState;
use super::supply::Supply;
use super::zspage::FrameLink;
use super::zspages::Zspages;
use crate::frames::FrameId;

/// Makes a zspage for class number `class`. Called without the class lock: allocating frames may
/// migrate frames of this class.
#[cold]
pub(super) fn make(
    supply: &Supply,
    zspages: &Zspages,
    class: usize,
    shape: &SizeClass,
) -> Result<u32, ZsError> {
    let number = zspages.take().ok_or(ZsError::Limit(supply.frame_pool().frame_count()))?;
    let mut frames = [FrameId::new(0); MAX_CHAIN];
    for position in 0..shape.frames {
        match supply.alloc(FrameLink { zspage: number, position }) {
            Ok(frame) => frames[position] = frame,
            Err(error) => {
                frames.into_iter().take(position).for_each(|frame| supply.free(frame));
                zspages.put(number);
                return Err(error);
            }
        }
    }
    // Until now the frames were movable but in no chain, and `migrate` refused them.
    // A class is one of at most 255.
    zspages.at(number).open(class as u16, &frames[..shape.frames]);
    Ok(number)
}

/// A zspage that was closed, with the frames it had.
pub(super) struct Emptied {
    number: u32,
    frames: [Option<FrameId>; MAX_CHAIN],
}

impl Emptied {
    /// Takes a zspage off its list and closes it.
    pub(super) fn detach(state: &mut ClassState, zspages: &Zspages, number: u32) -> Self {
        state.unlink(zspages, number);
        let mut emptied = Self { number, frames: [None; MAX_CHAIN] };
        for (to, frame) in emptied.frames.iter_mut().zip(zspages.at(number).close()) {
            *to = Some(frame);
        }
        emptied
    }

    /// Frees the frames; returns how many. Called without the class lock.
    pub(super) fn free(self, supply: &Supply, zspages: &Zspages) -> u64 {
        let frames = self.frames.into_iter().flatten();
        let freed = frames.map(|frame| supply.free(frame)).count();
        zspages.put(self.number);
        freed as u64
    }
}
